"""The conclusions of a sweep: which trial wins, how well early figures rank the final ones, and what the trials cost.

The paper reports a "consistent ranking of ablations throughout training". Early stopping relies on it, so it is measured here, by
Spearman's rank correlation between the figures at each point and the final ones. Costs are training FLOPs, forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from semantica.sweeps.results import Result


def winner(results: Sequence[Result]) -> Result | None:
    """The finished trial with the lowest final figure, the first among equals; None when no trial has finished."""
    finished = [result for result in results if result.status == "finished"]
    return min(finished, key=lambda result: (_final(result), result.index), default=None)


def _final(result: Result) -> float:
    assert result.final is not None
    return result.final


def rank_correlations(curves: Sequence[Sequence[float]]) -> list[float]:
    """Spearman's correlation over trials between the figures at each point but the last and the final ones; NaN if all are equal.

    Ties take the mean of their ranks. The list is empty for fewer than two trials.
    """
    if len(curves) < 2:
        return []
    figures = np.array(curves, np.float64)
    finals = figures[:, -1]
    correlations = []
    for column in figures.T[:-1]:
        flat = np.ptp(column) == 0 or np.ptp(finals) == 0
        correlations.append(float("nan") if flat else float(spearmanr(column, finals).statistic))
    return correlations


def cost(result: Result) -> float:
    """Training FLOPs spent up to the last measured step."""
    return result.flops * result.share * result.steps[-1]


def share_of_grid(results: Sequence[Result]) -> float:
    """The FLOPs that the trials spent, as a share of the FLOPs of training all of them to the end."""
    whole = sum(result.flops * result.steps[-1] for result in results)
    return sum(map(cost, results)) / whole
