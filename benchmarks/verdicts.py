"""Whether an ordering of the paper holds: figures of trained models by seed in, a gain with two standard errors and a verdict out.

A figure comes with what it is without each group of conditioning images, so that the error of any difference over those images is
a jackknife of the difference: what two models share, they share in it. The error over training seeds is that of the differences of
equal seeds. The larger of the two decides, since either alone can be small by chance. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

NUM_ERRORS = 2
Verdict = Literal["holds", "does not hold", "cannot tell", "not run"]
HOLDS: Verdict = "holds"
FAILS: Verdict = "does not hold"
CANNOT_TELL: Verdict = "cannot tell"
NOT_RUN: Verdict = "not run"


@dataclass(frozen=True)
class Figure:
    """What was measured of a model's samples, and the same without the samples of each group of conditioning images."""

    value: float
    without: tuple[float, ...]


# (variant, training seed) -> address -> figure.
Figures = Mapping[tuple[str, int], Mapping[str, Figure]]


@dataclass(frozen=True)
class Place:
    """Where a figure is found: the variant that was trained, and the figure's address in its result."""

    variant: str
    address: str


@dataclass(frozen=True)
class Comparison:
    """The claim that `better` beats `worse`: has the lower figure, or with higher_wins the higher one."""

    better: Place
    worse: Place
    higher_wins: bool = False

    @property
    def is_of_one_training(self) -> bool:
        """Whether one model is compared with itself, so that one training seed can tell something."""
        return self.better.variant == self.worse.variant


@dataclass(frozen=True)
class Gain:
    """By how much `better` won, on average over seeds; below 0 it lost. over_seeds is None with one seed."""

    value: float
    over_seeds: float | None
    over_images: float
    num_seeds: int
    is_of_one_training: bool = False

    @property
    def error(self) -> float:
        """The standard error that decides: the larger one."""
        return max(self.over_images, self.over_seeds or 0.0)

    @property
    def verdict(self) -> Verdict:
        """Cannot tell within two standard errors, and from one training each of two variants, whose scatter is then unknown."""
        if self.over_seeds is None and not self.is_of_one_training:
            return CANNOT_TELL
        if abs(self.value) < NUM_ERRORS * self.error or self.value == 0:
            return CANNOT_TELL
        return HOLDS if self.value > 0 else FAILS

    @property
    def written(self) -> str:
        """The gain with both errors, for people."""
        seeds = "" if self.over_seeds is None else f" ± {self.over_seeds:.3g} over {self.num_seeds} seeds"
        return f"{self.value:.3g}{seeds}{',' if seeds else ''} ± {self.over_images:.2g} over images"


@dataclass(frozen=True)
class Ordering:
    """A claim about which of two figures is the better. key: of `paper.ORDERINGS` where the paper makes it.

    needs: what is missing when a variant was not trained. caveat: in what the comparison here departs from the claim.
    """

    key: str
    claim: str
    comparison: Comparison
    needs: str = ""
    caveat: str = ""


def jackknife(without: Sequence[float] | np.ndarray) -> float:
    """The standard error of a figure from its values without each of G groups of equal size."""
    values = np.asarray(without, np.float64)
    if len(values) < 2:
        raise ValueError(f"jackknife: expected at least 2 groups, got {len(values)}")
    return float(np.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum()))


def common_seeds(figures: Figures, comparison: Comparison) -> list[int]:
    """The seeds at which both sides were measured."""
    sides = (comparison.better, comparison.worse)
    found = [{seed for (variant, seed), of in figures.items() if variant == s.variant and s.address in of} for s in sides]
    return sorted(found[0] & found[1])


def gain(figures: Figures, comparison: Comparison) -> Gain | None:
    """What the better side gained, paired by seed and by group of conditioning images; None when no seed has both sides."""
    seeds = common_seeds(figures, comparison)
    if not seeds:
        return None
    sign = 1 if comparison.higher_wins else -1
    values, without = list[float](), list[np.ndarray]()
    for seed in seeds:
        a, b = (figures[side.variant, seed][side.address] for side in (comparison.better, comparison.worse))
        if len(a.without) != len(b.without):
            raise ValueError(
                f"{comparison}: {len(a.without)} groups of conditioning images on one side, {len(b.without)} on the other"
            )
        values.append(sign * (a.value - b.value))
        without.append(sign * (np.array(a.without) - np.array(b.without)))
    over_seeds = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    over_images = jackknife(np.mean(without, axis=0))
    return Gain(float(np.mean(values)), over_seeds, over_images, len(seeds), comparison.is_of_one_training)


def mean_figure(figures: Figures, place: Place) -> tuple[float, float | None, int] | None:
    """(mean over seeds, its standard error over seeds or None, number of seeds) of a figure; None when there is none."""
    values = [of[place.address].value for (variant, _), of in figures.items() if variant == place.variant and place.address in of]
    if not values:
        return None
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return float(np.mean(values)), error, len(values)


def judged(figures: Figures, orderings: Sequence[Ordering]) -> list[tuple[Ordering, Gain | None, Verdict]]:
    """Every ordering with its gain and verdict; those without figures are not run."""
    found: list[tuple[Ordering, Gain | None, Verdict]] = []
    for ordering in orderings:
        measured = gain(figures, ordering.comparison)
        found.append((ordering, measured, NOT_RUN if measured is None else measured.verdict))
    return found


def ranks_alike(early: Mapping[str, float], late: Mapping[str, float]) -> float:
    """Kendall's tau of two rankings of the same variants: 1 when every pair stands alike, -1 when none does."""
    names = sorted(early.keys() & late.keys())
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    if not pairs:
        raise ValueError("ranks_alike: expected at least two variants that both rankings hold")
    return float(np.mean([np.sign(early[a] - early[b]) * np.sign(late[a] - late[b]) for a, b in pairs]))
