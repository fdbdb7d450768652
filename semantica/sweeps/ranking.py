"""What a sweep says: which trial wins, how well early figures rank the final ones, and what stopping early costs and saves.

The paper sees a "consistent ranking of ablations throughout training"; early stopping rests on it, so it is measured here by
Spearman's rank correlation of the figures at each point with the final ones. Costs are training FLOPs, forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """Training FLOPs per batch row spent up to the last measured step."""
    return result.flops * result.share * result.steps[-1]


def share_of_grid(results: Sequence[Result]) -> float:
    """What these trials have spent, as a share of what all of them trained to the end would."""
    whole = sum(result.flops * result.steps[-1] for result in results)
    return sum(map(cost, results)) / whole
