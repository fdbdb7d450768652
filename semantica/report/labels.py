"""Where the labels beside a chart's points go, so that they hide neither each other nor the lines and error bars.

In come positions in points (1/72 inch) of the drawn chart; out comes one offset a label. Greedy and without chance: the same chart
gives the same places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Spots = Float[np.ndarray, "_ 2"]

_CHARACTER = 0.58  # mean width of a character over the font's size, for the fonts that browsers use
_LINE = 1.15
_DISTANCES = (5.0, 11.0, 18.0, 27.0)
_DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
_PACE = 2.0  # lines are sampled every so many points
_MARGIN = 1.5


@dataclass(frozen=True)
class _Box:
    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: _Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    def count(self, spots: Spots) -> int:
        """How many of the spots lie inside, with a margin."""
        x, y = spots[:, 0], spots[:, 1]
        across = (x > self.left - _MARGIN) & (x < self.right + _MARGIN)
        return int((across & (y > self.bottom - _MARGIN) & (y < self.top + _MARGIN)).sum())


def sampled(start: Spots, stop: Spots) -> Spots:
    """Spots along the straight lines from each start to its stop, close enough that no label fits between two."""
    lines = []
    for a, b in zip(start, stop, strict=True):
        if np.isfinite([a, b]).all():
            share = np.linspace(0, 1, max(2, int(np.hypot(*(b - a)) / _PACE)))[:, None]
            lines.append(a + share * (b - a))
    return np.concatenate(lines) if lines else np.empty((0, 2))


def label_offsets(
    points: Spots, labels: Sequence[str], obstacles: Spots, area: tuple[float, float, float, float], size: float
) -> list[tuple[float, float]]:
    """Offset of each label's centre from its point. `area` (left, bottom, right, top) is where labels may stand."""
    allowed, taken, found = _Box(*area), list[_Box](), []
    for point, label in zip(points, labels, strict=True):
        width, height = _CHARACTER * size * len(label), _LINE * size
        best: tuple[float, _Box, tuple[float, float]] | None = None
        for distance in _DISTANCES:
            for across, up in _DIRECTIONS:
                x = across * (distance + width / 2)
                y = up * ((distance if across == 0 else distance * 0.7) + height / 2)
                box = _Box(point[0] + x - width / 2, point[1] + y - height / 2, point[0] + x + width / 2, point[1] + y + height / 2)
                outside = width * height - box.overlap(allowed)
                cost = 4 * sum(box.overlap(other) for other in taken) + 4 * outside + 6 * box.count(obstacles) + distance
                if best is None or cost < best[0] - 1e-9:
                    best = (cost, box, (x, y))
        assert best is not None
        taken.append(best[1])
        found.append(best[2])
    return found
