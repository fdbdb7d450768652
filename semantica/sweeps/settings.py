"""The settings of a sweep: the space, the search, when a trial is stopped, and how its samples are measured."""

from __future__ import annotations

from typing import Literal

from semantica.config import config, free, require
from semantica.diffusion.settings import SamplerConfig
from semantica.errors import ConfigError
from semantica.generation.settings import GenerateConfig
from semantica.sweeps.space import SpaceConfig


@config
class MeasureConfig:
    """How a trial is measured: the Fréchet distance of samples of the EMA weights, at evenly spaced points of its training.

    The conditioning images are held-out pictures. They and their noise are the same in all trials and at all points.
    extractor: the network whose features are compared; "encoder" is the encoder of the first --encodings.
    """

    num_points: int = 8
    num: int = 256  # conditioning images, with one sample each
    num_reference: int = 50_000  # the most held-out pictures that samples are compared with
    guidance: float = 0.0
    sampler: SamplerConfig = SamplerConfig(name="dpm_solver", num_steps=32)
    extractor: str = "encoder"
    num_shown: int = free(8)  # samples in the picture of each point
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_points", 1), ("num", 2), ("num_reference", 2), ("num_shown", 1)):
            require(getattr(self, name) >= least, name, f"{least} or more", getattr(self, name))
        require(self.guidance >= 0, "guidance", "0 or more", self.guidance)
        if self.extractor != "encoder":
            from semantica.measure.networks.extractors import feature_names  # here: it loads torch, which --help does not need

            known = feature_names()
            require(self.extractor in known, "extractor", f"one of {', '.join(known)}", self.extractor)

    def steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps after which a training is measured; the last step is one. Raises ConfigError for too few steps."""
        if num_steps < self.num_points:
            raise ConfigError(f"measure.num_points must be at most train.num_steps = {num_steps}, got {self.num_points}")
        return tuple(num_steps * point // self.num_points for point in range(1, self.num_points + 1))

    @property
    def drawing(self) -> GenerateConfig:
        """The settings for `sample_pictures`."""
        return GenerateConfig(sampler=self.sampler, seed=self.seed)


@config
class SweepConfig:
    """search: grid tries every combination; random and optuna (TPE) try num_trials of them, and accept ranges.

    stopping: asha and halving decide at the points grace_points, grace_points · reduction_factor, and so on. asha stops a trial
    that is not among the best 1 / reduction_factor of the trials that reached the point before it. halving lets all trials wait for
    each other at the point, and the best continue: it computes less of the grid when few trials run at once, and needs a search
    that does not wait for figures.
    """

    space: SpaceConfig = SpaceConfig()
    search: Literal["grid", "random", "optuna"] = "grid"
    num_trials: int = 12
    stopping: Literal["asha", "halving", "none"] = "asha"
    grace_points: int = 1
    reduction_factor: float = 3.0
    measure: MeasureConfig = MeasureConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.num_trials >= 1, "num_trials", "1 or more", self.num_trials)
        require(self.reduction_factor > 1, "reduction_factor", "above 1", self.reduction_factor)
        most = self.measure.num_points
        require(1 <= self.grace_points <= most, "grace_points", f"in 1..measure.num_points = {most}", self.grace_points)
        waits = self.search == "optuna" and self.stopping == "halving"
        require(not waits, "stopping", "asha or none with optuna, which chooses by the figures of whole trials", self.stopping)
        require(0 <= self.seed < 2**31, "seed", "in [0, 2^31)", self.seed)
