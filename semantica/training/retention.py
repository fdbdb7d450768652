"""Which checkpoints of a run are kept: the last ones, the best ones, every so many steps. Pure: steps and metrics in, steps out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from semantica.config import config, require


@config
class KeepConfig:
    """What stays while training. A checkpoint stays when any of the rules wants it. All numbers are choices [C]."""

    last: int = 2  # the newest ones; a second one is what is left when the newest is damaged
    best: int = 0  # those with the best metric: `jobs.train` gives the mean loss of the reports since the save before
    best_is: Literal["lowest", "highest"] = "lowest"  # a loss or a Fréchet distance: lowest
    every_steps: int = 0  # those of a step that this divides, for good; 0: none

    def __post_init__(self) -> None:
        require(self.last >= 1, "last", "at least 1", self.last)
        require(self.best >= 0, "best", "0 or more", self.best)
        require(self.every_steps >= 0, "every_steps", "0 or more", self.every_steps)


def kept(metrics: Mapping[int, float | None], keep: KeepConfig) -> frozenset[int]:
    """The steps that stay, of checkpoints given as step -> metric. Of equal metrics the later is better; NaN is no metric."""
    steps = sorted(metrics)
    sign = 1.0 if keep.best_is == "lowest" else -1.0
    measured = {step: value for step, value in metrics.items() if value is not None and not math.isnan(value)}
    best = sorted(measured, key=lambda step: (sign * measured[step], -step))[: keep.best]
    every = [step for step in steps if keep.every_steps and step % keep.every_steps == 0]
    return frozenset([*steps[-keep.last :], *best, *every])
