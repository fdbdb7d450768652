"""Ancestral DDPM with interpolated variance, the paper's sampler: every step draws z at s around the posterior mean."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from semantica.conditioning import Conditioning
from semantica.diffusion.process import Denoise, LogSNR, Pictures
from semantica.diffusion.samplers.contract import Callback, Noise, step_levels, walk
from semantica.diffusion.schedule import alpha_sigma
from semantica.diffusion.settings import SamplerConfig, ScheduleConfig


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


def ddpm(
    denoise: Denoise,
    cond: Conditioning,
    z: Pictures,
    schedule: ScheduleConfig,
    config: SamplerConfig,
    noise: Noise,
    callback: Callback | None = None,
) -> Pictures:
    """Pictures by ancestral sampling (`walk`); `noise` is called for steps 0 .. num_steps - 2, the last step adds none."""

    def rule(index: int, z: Tensor, x_hat: Tensor, logsnr_t: Tensor, logsnr_s: Tensor) -> Tensor:
        return ddpm_step(z, x_hat, logsnr_t, logsnr_s, noise(index), config.interpolation)

    levels = step_levels(schedule, config.num_steps, config.spacing or "t")
    return walk(rule, denoise, cond, z, levels, config, callback)
