"""What all samplers share: their settings, their signature, the levels they walk and the walk itself.

A sampler differs from another in one thing only, its rule for z at s given z and x_hat at t; `walk` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from semantica.conditioning import Conditioning
from semantica.diffusion.process import Denoise, LogSNR, Pictures
from semantica.diffusion.schedule import logsnr
from semantica.diffusion.settings import SamplerConfig, ScheduleConfig, Spacing

Noise = Callable[[int], Tensor]
"""step index (0 at t = 1) -> standard normal like z."""


@dataclass(frozen=True)
class Step:
    """What a callback sees after step `index`: z at the level `logsnr` (B,) it has reached, and the x_hat it was made from."""

    index: int
    z: Tensor
    x_hat: Tensor
    logsnr: Tensor


Callback = Callable[[Step], Tensor]
"""Step -> the z to go on with: `step.z` to watch, another to edit."""

Rule = Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(index, z, x_hat, logsnr at t, logsnr at s) -> z at s, for every step but the last."""


@runtime_checkable
class Sampler(Protocol):
    """What every sampler is: z at t = 1 in, x at t = 0 out. A deterministic one never calls `noise`."""

    def __call__(
        self,
        denoise: Denoise,
        cond: Conditioning,
        z: Pictures,
        schedule: ScheduleConfig,
        config: SamplerConfig,
        noise: Noise,
        callback: Callback | None = None,
    ) -> Pictures: ...


def step_levels(schedule: ScheduleConfig, num_steps: int, spacing: Spacing) -> Float[Tensor, " num_steps_and_1"]:
    """The levels (logsnr, float64 on the host) between which the steps lie, from t = 1 to t = 0."""
    t = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    if spacing == "t":
        return logsnr(t, schedule)
    return schedule.logsnr_max + t * (schedule.logsnr_min - schedule.logsnr_max)


def sent(levels: Float[Tensor, " n"], z: Pictures) -> list[LogSNR]:
    """Each level as a (B,) tensor beside z.

    They are exact on the host and sent before the first step, one by one: on a GPU no step waits for a copy, and on XLA they are
    inputs, so that every step is the same program.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    return [level.to(device=z.device, dtype=dtype).expand(len(z)) for level in levels]


def predict(denoise: Denoise, cond: Conditioning, z: Pictures, logsnr: LogSNR, config: SamplerConfig) -> Pictures:
    """x_hat, clipped when asked: once, after all that wraps the network."""
    x_hat = denoise(z, logsnr, cond)
    return x_hat.clamp(-1, 1) if config.clip else x_hat


@torch.no_grad()
def walk(
    rule: Rule,
    denoise: Denoise,
    cond: Conditioning,
    z: Pictures,
    levels: Float[Tensor, " n"],
    config: SamplerConfig,
    callback: Callback | None,
) -> Pictures:
    """x after the steps between `levels`, with one call of `denoise` for each; the last step returns its x_hat.

    In [-1, 1] when `clip`. The callback is called after every step but the last. No gradients: a wrapper that needs one enables it
    for itself.
    """
    *starts, _ = sent(levels, z)
    for index, (logsnr_t, logsnr_s) in enumerate(pairwise(starts)):
        x_hat = predict(denoise, cond, z, logsnr_t, config)
        z = rule(index, z, x_hat, logsnr_t, logsnr_s)
        if callback is not None:
            z = callback(Step(index, z, x_hat, logsnr_s))
    return predict(denoise, cond, z, starts[-1], config)
