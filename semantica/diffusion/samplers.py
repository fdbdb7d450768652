"""Samplers: a Denoise and noise in, pictures out. Each is one function with the signature of `Sampler`.

Here: ancestral DDPM with interpolated variance, the paper's sampler. The caller gives z at t = 1 and the noise of every step, so
that both can be keyed by sample and no result depends on how samples are batched or on which worker draws them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from semantica.conditioning import Conditioning
from semantica.config import config, require
from semantica.diffusion.process import Denoise, LogSNR, Pictures
from semantica.diffusion.schedule import ScheduleConfig, alpha_sigma, logsnr

Noise = Callable[[int], Tensor]
"""step index (0 at t = 1) -> standard normal like z."""


@config
class SamplerConfig:
    """Settings of every sampler."""

    num_steps: int = 256  # 512 for reported figures
    # std = small_std^interpolation large_std^(1 - interpolation): 1 is the posterior's std, 0 the forward process's.
    interpolation: float = 0.2
    clip: bool = True  # x_hat to [-1, 1] at every step, after guidance

    def __post_init__(self) -> None:
        require(self.num_steps >= 1, "num_steps", "at least 1", self.num_steps)
        require(0 <= self.interpolation <= 1, "interpolation", "in [0, 1]", self.interpolation)


@dataclass(frozen=True)
class Step:
    """What a callback sees after step `index`: z at the level `logsnr` (B,) it has reached, and the x_hat it was made from."""

    index: int
    z: Tensor
    x_hat: Tensor
    logsnr: Tensor


Callback = Callable[[Step], Tensor]
"""Step -> the z to go on with: `step.z` to watch, another to edit."""


class Sampler(Protocol):
    """What every sampler is: z at t = 1 in, x at t = 0 out."""

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


def ddpm_posterior(
    z: Pictures, x_hat: Pictures, logsnr_t: LogSNR, logsnr_s: LogSNR
) -> tuple[Pictures, Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]:
    """(mean, small variance, large variance) of z at s given z at t and x_hat; logsnr_t < logsnr_s.

    mean = r (alpha_s / alpha_t) z + c alpha_s x_hat, r = exp(logsnr_t - logsnr_s), c = 1 - r; small = c sigma_s², the variance of
    q(z_s | z_t, x); large = c sigma_t², the variance of q(z_t | z_s) (Ho 2020, eq. 6 and 7; Hoogeboom 2023, appendix).
    """
    alpha_t, sigma_t = alpha_sigma(logsnr_t[:, None, None, None])
    alpha_s, sigma_s = alpha_sigma(logsnr_s[:, None, None, None])
    difference = (logsnr_t - logsnr_s)[:, None, None, None]
    c = -torch.expm1(difference)
    mean = difference.exp() * (alpha_s / alpha_t) * z + c * alpha_s * x_hat
    return mean, c * sigma_s.square(), c * sigma_t.square()


def ddpm_step(z: Pictures, x_hat: Pictures, logsnr_t: LogSNR, logsnr_s: LogSNR, noise: Pictures, interpolation: float) -> Pictures:
    """z at s, drawn around the posterior mean with std = small_std^interpolation large_std^(1 - interpolation)."""
    mean, small, large = ddpm_posterior(z, x_hat, logsnr_t, logsnr_s)
    return mean + small ** (interpolation / 2) * large ** ((1 - interpolation) / 2) * noise


@torch.no_grad()
def ddpm(
    denoise: Denoise,
    cond: Conditioning,
    z: Pictures,
    schedule: ScheduleConfig,
    config: SamplerConfig,
    noise: Noise,
    callback: Callback | None = None,
) -> Pictures:
    """Pictures by ancestral sampling in `num_steps` equal steps from t = 1 to 0; the last step returns its x_hat without noise.

    In [-1, 1] when `clip`. `noise` is called for steps 0 .. num_steps - 2, the callback after each of these. No gradients: a
    wrapper that needs one enables it for itself.
    """
    # Levels are exact (float64) on the host and sent one by one: on XLA they are inputs, so that every step is the same program.
    levels = logsnr(torch.linspace(1, 0, config.num_steps + 1, dtype=torch.float64), schedule)
    dtype = torch.promote_types(z.dtype, torch.float32)

    def level(index: int) -> Tensor:
        return levels[index].to(device=z.device, dtype=dtype).expand(len(z))

    def predict(z: Tensor, index: int) -> Tensor:
        x_hat = denoise(z, level(index), cond)
        return x_hat.clamp(-1, 1) if config.clip else x_hat

    for index in range(config.num_steps - 1):
        x_hat = predict(z, index)
        z = ddpm_step(z, x_hat, level(index), level(index + 1), noise(index), config.interpolation)
        if callback is not None:
            z = callback(Step(index, z, x_hat, level(index + 1)))
    return predict(z, config.num_steps - 1)
