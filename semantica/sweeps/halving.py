"""Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): which trials of a sweep stop early, at which points.

In: the figures of every trial. Out: the trials that continue. ASHA decides when a trial reaches a point, by comparing it with the
trials that reached the point before (`Asha`: Ray Tune asks it, and `simulated_asha` applies it to recorded curves). `next_round`
decides when all trials have reached a point. So no trial continues only because it was early, and the order of the trials does
not matter. Until then the trials pause at the point: each is saved, and its process ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from semantica.sweeps.results import Figure, Result


def milestones(num_points: int, grace_points: int, reduction_factor: float) -> list[float]:
    """The points at which trials may be stopped. The last point is not one of them: a stop there would save nothing.

    A milestone that is not a whole number is decided at the next point.
    """
    points, milestone = [], float(grace_points)
    while milestone <= num_points - 1:
        points.append(milestone)
        milestone *= reduction_factor
    return points


class Asha:
    """Asynchronous successive halving (Li et al., arXiv 1810.05934) over trials that reach their points in any order.

    `stops(name, point, figure)`: whether the figure of a trial at a point is above the (1 / reduction_factor)-quantile of the
    figures that reached the same milestone before. Each trial is judged once per milestone, at its first point from there on.
    """

    def __init__(self, num_points: int, grace_points: int, reduction_factor: float) -> None:
        self.reduction_factor = reduction_factor
        self.rungs: dict[float, dict[str, float]] = {
            milestone: {} for milestone in reversed(milestones(num_points, grace_points, reduction_factor))
        }

    def stops(self, name: str, point: int, figure: float) -> bool:
        """Add a figure. Returns True when the trial should be stopped here."""
        reached = [others for milestone, others in self.rungs.items() if milestone <= point]
        if not reached or name in reached[0]:
            return False
        others = reached[0]
        # Of negated figures, as Ray Tune computes it: the other quantile may differ in its last bit, which decides at a tie.
        rewards = [-other for other in others.values()]
        is_worse = bool(others) and -figure < np.nanpercentile(rewards, (1 - 1 / self.reduction_factor) * 100)
        others[name] = figure
        return bool(is_worse)


@dataclass(frozen=True)
class AshaOutcome:
    """ASHA over recorded curves: the point that each trial reached, the winner, and the cost as a share of the whole grid's."""

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
    """ASHA over the curves of a full grid, one trial after the other in the given order. steps: of the points."""
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
    """names: the trials that continue. until: the point they continue to; None for their end. losers: all trials stopped so far."""

    names: tuple[str, ...]
    until: int | None
    losers: tuple[Loser, ...]


def next_round(results: Sequence[Result], *, num_points: int, grace_points: int, reduction_factor: float) -> Round:
    """The next round, a pure function of the measured figures. A round without names means that the sweep is done.

    At each of ASHA's points the best 1 / reduction_factor of the trials that reached it continue, at least one. A trial that
    diverged, or could not be trained, does not count at the points that it did not reach.
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
