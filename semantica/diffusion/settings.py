"""The settings of schedule, samplers and guidance. No torch here: a command reads its settings without loading it."""

from __future__ import annotations

from typing import Literal

from semantica.config import config, require

Prediction = Literal["v", "eps", "x"]
Spacing = Literal["t", "logsnr"]


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

    name: Literal["ddpm", "ddim", "dpm_solver"] = "ddpm"
    num_steps: int = 256  # 512 for reported figures
    # What the steps are equal in [C]; none: t for ddpm, as the paper's are, and logsnr for the others. The shifted schedule leaves
    # so few steps in t at low noise that dpm_solver is further off after 64 of them at 256 px than after 8 in logsnr.
    spacing: Spacing | None = None
    # Of ddpm: std = small_std^interpolation large_std^(1 - interpolation): 1 is the posterior's std, 0 the forward process's.
    interpolation: float = 0.2
    clip: bool = True  # x_hat to [-1, 1] at every step, after guidance

    def __post_init__(self) -> None:
        require(self.num_steps >= 1, "num_steps", "at least 1", self.num_steps)
        require(0 <= self.interpolation <= 1, "interpolation", "in [0, 1]", self.interpolation)


@config
class GuidanceConfig:
    """What goes beyond the paper's plain w. The defaults are plain guidance, bit for bit, where no similarity is asked for."""

    # What a requested similarity weighs by itself (`requested`); nothing for rows that ask for none. At 0 samples hardly follow
    # (docs/experiments.md).
    request: float = 4.0
    # Levels (logsnr) from low to high where w holds; outside it is 0, at half the cost (Kynkäänniemi 2024; -2 ln of their sigma).
    interval: tuple[float, float] | None = None
    # Adaptive projected guidance (Sadat 2024): the share of the update along x_hat that stays (eta; they use 0), the L2 norm over
    # the picture that the update is shortened to, and what the last update weighs in this one (beta; they use -0.5).
    parallel: float = 1.0
    max_norm: float | None = None
    momentum: float = 0.0
    rescale: float = 0.0  # phi of Lin 2023: 0 is off, 1 gives x_hat the conditional one's std; they use 0.7
    threshold: float | None = None  # the quantile of dynamic thresholding (Saharia 2022); 0.995 is usual

    def __post_init__(self) -> None:
        require(self.request >= 0, "guidance.request", "0 or more", self.request)
        if self.interval is not None:
            require(self.interval[0] < self.interval[1], "guidance.interval", "(low, high) with low < high", self.interval)
        require(0 <= self.parallel <= 1, "guidance.parallel", "in [0, 1]", self.parallel)
        require(self.max_norm is None or self.max_norm > 0, "guidance.max_norm", "positive or none", self.max_norm)
        require(-1 < self.momentum < 1, "guidance.momentum", "in (-1, 1)", self.momentum)
        require(0 <= self.rescale <= 1, "guidance.rescale", "in [0, 1]", self.rescale)
        require(self.threshold is None or 0 < self.threshold <= 1, "guidance.threshold", "in (0, 1] or none", self.threshold)
