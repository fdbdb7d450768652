"""The loss by noise level: why a total loss that looks flat says little. Most of its value comes from levels where nothing is left
to learn, so what improves is seen in the bins of logsnr alone.

In: the loss and logsnr of every example of a step, on the device. Out: sums a bin, which add up over steps and over workers, and
from them the mean of the eps loss and of the v loss in every bin that had an example.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semantica.diffusion.process import LogSNR
from semantica.diffusion.schedule import ScheduleConfig

WIDTH = 2  # of a bin, in logsnr [C]


@dataclass(frozen=True)
class LevelLoss:
    """The examples whose logsnr is nearest to `logsnr`: how many, the mean of ‖eps - eps_hat‖² and that of ‖v - v_hat‖²."""

    logsnr: int
    num: int
    loss: float
    v_loss: float


def centres(schedule: ScheduleConfig) -> list[int]:
    """The middles of the bins, multiples of WIDTH, which cover logsnr_min to logsnr_max."""
    first = math.floor((schedule.logsnr_min - WIDTH / 2) / WIDTH) + 1
    last = math.ceil((schedule.logsnr_max + WIDTH / 2) / WIDTH) - 1
    return [WIDTH * index for index in range(first, last + 1)]


def level_sums(
    losses: Float[Tensor, " b"], logsnr: LogSNR, counted: Bool[Tensor, ""], schedule: ScheduleConfig
) -> Float[Tensor, "3 n"]:
    """Number of examples, sum of eps losses and sum of v losses a bin, float64; all 0 unless `counted`.

    v_loss = loss / sigmoid(logsnr), whatever the network predicts (see `diffusion.process.eps_loss`).
    """
    middles = centres(schedule)
    index = ((logsnr - middles[0]) / WIDTH).round().clamp(0, len(middles) - 1)
    inside = index == torch.arange(len(middles), device=logsnr.device)[:, None]
    values = torch.stack([torch.ones_like(losses), losses, losses / torch.sigmoid(logsnr)]).double()
    # Not a product with the mask: 0 · NaN is NaN.
    return torch.where(inside & counted, values[:, None], 0.0).sum(-1)


def level_losses(sums: Sequence[Sequence[float]], schedule: ScheduleConfig) -> tuple[LevelLoss, ...]:
    """The means of every bin that had an example, from the sums of `level_sums`, in the order of logsnr."""
    rows = zip(centres(schedule), *sums, strict=True)
    return tuple(LevelLoss(middle, round(num), loss / num, v / num) for middle, num, loss, v in rows if num)
