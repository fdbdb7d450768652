"""The noise schedule: time t in [0, 1] in, log signal-to-noise ratio out.

The loss draws t ~ U(0, 1), and samplers go from t = 1 (noise) to t = 0 (picture). All other modules use logsnr only.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from semantica.diffusion.settings import ScheduleConfig


def logsnr_shift(config: ScheduleConfig) -> float:
    """2 ln(noise_resolution / resolution), -4.1589 at 256 px: larger pictures average more noise away, so they get more of it."""
    return 2 * math.log(config.noise_resolution_px / config.resolution_px)


def logsnr(t: Float[Tensor, "*shape"], config: ScheduleConfig) -> Float[Tensor, "*shape"]:
    """logsnr at time t in [0, 1], falling from logsnr_max at t = 0 to logsnr_min at t = 1.

    logsnr(t) = -2 ln tan(a + t (b - a)) + shift, with a and b such that the ends are exact (Hoogeboom 2023, section 3.1).
    In float32 it is within 1e-3 of the exact value, worst at t = 1, where tan is steep.
    """
    shift = logsnr_shift(config)
    a = math.atan(math.exp(-0.5 * (config.logsnr_max - shift)))
    b = math.atan(math.exp(-0.5 * (config.logsnr_min - shift)))
    return (-2 * torch.log(torch.tan(a + t * (b - a))) + shift).clamp(config.logsnr_min, config.logsnr_max)


def alpha_sigma(logsnr: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """(alpha, sigma) of z = alpha x + sigma eps: alpha² = sigmoid(logsnr), sigma² = sigmoid(-logsnr) = 1 - alpha²."""
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
