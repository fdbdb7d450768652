"""The settings of schedule, samplers and guidance. No torch here, so that a command reads its settings without loading it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro

from semantica.conditioning.signals import SIMILARITY, Signal
from semantica.config import config, require
from semantica.config.registry import Registry
from semantica.errors import FieldError

Weighting = Literal["eps", "v", "sigmoid"]
Prediction = Literal["v", "eps", "x"]
"""What a network outputs. v is the paper's, and the only one that is well-conditioned at both ends of the schedule."""

Spacing = Literal["t", "logsnr"]
"""What the steps of a sampler are equal in."""

SAMPLERS: Registry[Any] = Registry("sampler", "semantica.diffusion.samplers")
"""Every sampler by name, registered beside its code by `@sampler(name)`. A look-up imports the samplers, and with them torch."""

SAMPLER_NAMES = ("ddpm", "ddim", "dpm_solver")
"""The names that --help shows and that are accepted without a look-up; a test holds them equal to the registry's."""


@config
class ScheduleConfig:
    """The cosine schedule shifted to the noise level it would have at `noise_resolution_px` (Hoogeboom 2023, section 3.1)."""

    resolution_px: int
    noise_resolution_px: int = 32
    # The ends hold after the shift. The paper is silent on the order; this way no resolution sees a logsnr outside the ends.
    logsnr_min: float = -15.0
    logsnr_max: float = 15.0

    def __post_init__(self) -> None:
        require(self.resolution_px >= 1, "resolution_px", "at least 1", self.resolution_px)
        require(self.noise_resolution_px >= 1, "noise_resolution_px", "at least 1", self.noise_resolution_px)
        require(self.logsnr_min < self.logsnr_max, "logsnr_min", f"below logsnr_max {self.logsnr_max}", self.logsnr_min)


@config
class SamplerConfig:
    """Settings of every sampler; the defaults are the paper's."""

    name: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(SAMPLER_NAMES) + "}")] = "ddpm"
    num_steps: int = 256  # 512 for reported figures
    # What the steps are equal in [C]; none: t for ddpm, as in the paper, and logsnr for ddim and dpm_solver. The shifted schedule
    # leaves few steps in t at low noise: dpm_solver with 64 steps in t is further off at 256 px than with 8 in logsnr.
    spacing: Spacing | None = None
    # For ddpm: std = small_std^interpolation large_std^(1 - interpolation): 1 is the posterior's std, 0 the forward process's.
    interpolation: float = 0.2
    clip: bool = True  # x_hat to [-1, 1] at every step, after guidance

    def __post_init__(self) -> None:
        known = self.name in SAMPLER_NAMES or self.name in SAMPLERS
        require(known, "name", f"one of {', '.join(SAMPLER_NAMES if known else SAMPLERS)}", self.name)
        require(self.num_steps >= 1, "num_steps", "at least 1", self.num_steps)
        require(0 <= self.interpolation <= 1, "interpolation", "in [0, 1]", self.interpolation)


@config
class GuidanceConfig:
    """What goes beyond the paper's plain w. The defaults are plain guidance, bit for bit, where no similarity is requested."""

    # The guidance weight of a requested similarity by itself; rows that request none are left alone. At 0 samples hardly follow the
    # request (docs/experiments.md).
    request: float = 4.0
    weights: tuple[tuple[str, float], ...] = ()  # (signal, guidance weight of it alone), over the weight that it declares
    # Levels (logsnr) from low to high where w holds; outside, w is 0, at half the cost (Kynkäänniemi 2024; -2 ln of their sigma).
    interval: tuple[float, float] | None = None
    # Adaptive projected guidance (Sadat 2024). parallel: the share of the update along x_hat that stays (eta; they use 0).
    # max_norm: the L2 norm over the picture to which a longer update is shortened. momentum: the weight of the last step's update
    # in this step's (beta; they use -0.5).
    parallel: float = 1.0
    max_norm: float | None = None
    momentum: float = 0.0
    rescale: float = 0.0  # phi of Lin 2023: 0 is off, 1 gives x_hat the conditional one's std; they use 0.7
    threshold: float | None = None  # the quantile of dynamic thresholding (Saharia 2022); 0.995 is usual

    def __post_init__(self) -> None:
        require(self.request >= 0, "request", "0 or more", self.request)
        require(all(weight >= 0 for _, weight in self.weights), "weights", "0 or more each", self.weights)
        if self.interval is not None:
            require(self.interval[0] < self.interval[1], "interval", "(low, high) with low < high", self.interval)
        require(0 <= self.parallel <= 1, "parallel", "in [0, 1]", self.parallel)
        require(self.max_norm is None or self.max_norm > 0, "max_norm", "positive or none", self.max_norm)
        require(-1 < self.momentum < 1, "momentum", "in (-1, 1)", self.momentum)
        require(0 <= self.rescale <= 1, "rescale", "in [0, 1]", self.rescale)
        require(self.threshold is None or 0 < self.threshold <= 1, "threshold", "in (0, 1] or none", self.threshold)

    def weights_of(self, signals: Sequence[Signal]) -> dict[str, float]:
        """The guidance weight of the similarity and of each of these signals alone. Raises FieldError for weights of others."""
        weights = {SIMILARITY: self.request} | {signal.name: signal.weight for signal in signals}
        for name, weight in self.weights:
            if name not in weights:
                known = " or ".join(weights)
                raise FieldError(
                    GuidanceConfig, "weights", f"must name {known}, got {name}; this denoiser is told no {name}, leave it out"
                )
            weights[name] = weight
        return weights
