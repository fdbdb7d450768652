"""Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): which trials of a sweep stop early, at which points.

In: what was measured of every trial. Out: who goes on. ASHA decides about a trial when it comes to a point, by those that were
there before it (`Asha`: Ray Tune is told what it says, and `simulated_asha` applies it to recorded curves). `next_round` decides
about a point when all trials have come to it, so that no trial goes on because it was early, and the order of the trials does
not matter: trials pause at a point, where they are saved and end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from semantica.sweeps.results import Figure, Result


def milestones(num_points: int, grace_points: int, reduction_factor: float) -> list[float]:
    """The points at which trials are stopped, before the last one, where there is nothing left to save.

    One that is not a whole number is looked at at the point after it.
    """
    found, milestone = [], float(grace_points)
    while milestone <= num_points - 1:
        found.append(milestone)
        milestone *= reduction_factor
    return found


class Asha:
    """Asynchronous successive halving (Li et al., arXiv 1810.05934) over trials that come to their points in any order.

    `stops(name, point, figure)`: whether the figure of a trial at a point is above the (1 / reduction_factor)-quantile of the
    figures that came to the same milestone before. Each trial is decided on once per milestone, at its first point from there on.
    """

    def __init__(self, num_points: int, grace_points: int, reduction_factor: float) -> None:
        self.reduction_factor = reduction_factor
        self.rungs: dict[float, dict[str, float]] = {
            milestone: {} for milestone in reversed(milestones(num_points, grace_points, reduction_factor))
        }

    def stops(self, name: str, point: int, figure: float) -> bool:
        """Take in a figure; True when the trial is to be stopped here."""
        reached = [others for milestone, others in self.rungs.items() if milestone <= point]
        if not reached or name in reached[0]:
            return False
        others = reached[0]
        is_worse = bool(others) and figure > np.nanpercentile(list(others.values()), 100 / self.reduction_factor)
        others[name] = figure
        return bool(is_worse)


@dataclass(frozen=True)
class AshaOutcome:
    """An ASHA over recorded curves: the points that each trial came to, who wins, and the share of the whole grid's cost."""

    reached: Mapping[str, int]
    best: str
    share: float


def simulated_asha(
    curves: Mapping[str, Sequence[float]],
    steps: Sequence[int],
    flops: Mapping[str, float],
    *,
    grace_points: int,
    reduction_factor: float,
) -> AshaOutcome:
    """ASHA, one trial after the other in the order given, over the curves of a full grid. steps: of the points."""
    asha = Asha(len(steps), grace_points, reduction_factor)
    reached = {
        name: next((point for point, figure in enumerate(curve, 1) if asha.stops(name, point, figure)), len(steps))
        for name, curve in curves.items()
    }
    finished = [name for name, point in reached.items() if point == len(steps)]
    spent = sum(flops[name] * steps[reached[name] - 1] for name in curves)
    whole = sum(flops[name] * steps[-1] for name in curves)
    return AshaOutcome(reached, min(finished, key=lambda name: curves[name][-1]), spent / whole)


@dataclass(frozen=True)
class Loser:
    """A trial that is stopped at a point, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Round:
    """The trials that go on, to which point (None: to their end), and all that have been stopped by now."""

    names: tuple[str, ...]
    until: int | None
    losers: tuple[Loser, ...]


def next_round(results: Sequence[Result], *, num_points: int, grace_points: int, reduction_factor: float) -> Round:
    """What is to be done now, a pure function of what was measured; no names: nothing.

    At each of ASHA's points the best 1 / reduction_factor of those that came there go on, at least one. A trial that diverged, or
    could not be trained, does not count at the points that it did not come to.
    """
    alive, losers = list(results), list[Loser]()
    for rung in (math.ceil(m) for m in milestones(num_points, grace_points, reduction_factor)):
        there = {result.name: figure for result in alive if (figure := _at(result, rung)) is not None}
        behind = [r for r in alive if r.name not in there and r.status not in ("diverged", "failed")]
        if behind:
            return Round(tuple(r.name for r in behind), rung, tuple(losers))
        ranked = sorted((r for r in alive if r.name in there), key=lambda r: (there[r.name].frechet, r.index))
        num_kept = max(1, math.floor(len(ranked) / reduction_factor))
        alive = ranked[:num_kept]
        losers += [
            Loser(r.name, f"FD {there[r.name].frechet:.4g} at point {rung} is not among the best {num_kept} of {len(ranked)}")
            for r in ranked[num_kept:]
        ]
    return Round(tuple(r.name for r in alive if r.status == "unfinished"), None, tuple(losers))


def _at(result: Result, point: int) -> Figure | None:
    return next((figure for figure in result.figures if figure.point == point), None)
