"""What a sweep says: which trial wins, how well early figures rank the final ones, and what stopping early costs and saves.

The paper sees a "consistent ranking of ablations throughout training"; early stopping rests on it, so it is measured here by
Spearman's rank correlation of the figures at each point with the final ones. Costs are training FLOPs, forward and backward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from semantica.sweeps.results import Result


def winner(results: Sequence[Result]) -> Result | None:
    """The finished trial with the lowest final figure, the first of equals; None when none has finished."""
    finished = [result for result in results if result.status == "finished"]
    return min(finished, key=lambda result: (_final(result), result.index), default=None)


def _final(result: Result) -> float:
    assert result.final is not None
    return result.final


def rank_correlations(curves: Sequence[Sequence[float]]) -> list[float]:
    """Spearman's correlation, over trials, of the figures at each point but the last with those at the last. NaN: all are equal.

    Ties take the mean of their ranks. Below two trials there is none: the list is empty.
    """
    if len(curves) < 2:
        return []
    figures = np.array(curves, np.float64)
    finals = figures[:, -1]
    found = []
    for column in figures.T[:-1]:
        flat = np.ptp(column) == 0 or np.ptp(finals) == 0
        found.append(float("nan") if flat else float(spearmanr(column, finals).statistic))
    return found


def cost(result: Result) -> float:
    """Training FLOPs a picture of a batch that a trial has spent: of its steps, as far as figures say."""
    return result.flops * result.share * result.steps[-1]


def share_of_grid(results: Sequence[Result]) -> float:
    """What these trials have spent, as a share of what all of them trained to the end would."""
    whole = sum(result.flops * result.steps[-1] for result in results)
    return sum(map(cost, results)) / whole


@dataclass(frozen=True)
class Stopped:
    """An ASHA over recorded curves: the points that each trial came to, who wins, and the share of the whole grid's cost."""

    reached: Mapping[str, int]
    best: str
    share: float


def milestones(num_points: int, grace_points: int, reduction_factor: float) -> list[float]:
    """The points at which ASHA decides, before the last one: there is nothing left to save there."""
    found, milestone = [], float(grace_points)
    while milestone <= num_points - 1:
        found.append(milestone)
        milestone *= reduction_factor
    return found


def simulated_asha(
    curves: Mapping[str, Sequence[float]],
    steps: Sequence[int],
    flops: Mapping[str, float],
    *,
    grace_points: int,
    reduction_factor: float,
) -> Stopped:
    """ASHA, one trial after the other in the order given, over the curves of a full grid. steps: of the points.

    A trial is stopped at a milestone when its figure is above the (1 / reduction_factor)-quantile of those that were there before.
    """
    rungs: dict[float, list[float]] = {m: [] for m in milestones(len(steps), grace_points, reduction_factor)}
    reached: dict[str, int] = {}
    for name, curve in curves.items():
        decided = set[float]()
        reached[name] = len(steps)
        for point, figure in enumerate(curve, 1):
            due = [m for m in rungs if m <= point and m not in decided]
            if not due:
                continue
            milestone = max(due)
            decided.add(milestone)
            others = rungs[milestone]
            is_worse = bool(others) and figure > np.percentile(others, 100 / reduction_factor)
            others.append(figure)
            if is_worse:
                reached[name] = point
                break
    finished = [name for name, point in reached.items() if point == len(steps)]
    spent = sum(flops[name] * steps[reached[name] - 1] for name in curves)
    whole = sum(flops[name] * steps[-1] for name in curves)
    return Stopped(reached, min(finished, key=lambda name: curves[name][-1]), spent / whole)
