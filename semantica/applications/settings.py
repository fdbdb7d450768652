"""The settings of `semantica apply`: one application over a folder of pictures. No torch here, so that a command can read them."""

from __future__ import annotations

from typing import Literal, TypeAlias

from semantica.config import config, require
from semantica.diffusion.settings import SAMPLER_NAMES, GuidanceConfig
from semantica.generation.settings import SpeedConfig

Task: TypeAlias = Literal["edit", "refine", "inpaint", "vary", "interpolate", "invert"]


@config
class ApplyConfig:
    """How an application draws. Each task has a method of the same name in Python, and its settings have the names of it."""

    samples_per_picture: int = 1
    guidance: float | None = None  # None: 0.5; of invert 0
    similarity: float | None = None
    sampler: str | None = None  # None, and num_steps None: as the model's release says
    num_steps: int | None = None
    beyond: GuidanceConfig = GuidanceConfig()
    speed: SpeedConfig = SpeedConfig()
    batch_size: int = 16  # pictures per shard of work
    seed: int = 0

    strength: float = 0.5  # of edit: the noise level at which drawing begins, 0 is the picture, 1 ignores it
    repeats: int = 1  # of edit
    factor: int = 8  # of refine: by which the picture is reduced
    until: float = 0.0  # of refine: the noise level below which the picture no longer decides
    resample: int = 1  # of inpaint: how often each `jump` steps are drawn
    jump: int = 10  # of inpaint
    num: int = 9  # of interpolate: pictures from one end to the other
    noise: Literal["fixed", "slerped"] = "fixed"  # of interpolate
    num_iterations: int = 10  # of invert: calls of the network per step

    def __post_init__(self) -> None:
        for name in ("samples_per_picture", "batch_size", "repeats", "factor", "resample", "jump", "num_iterations"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("strength", "until"):
            require(0 <= getattr(self, name) <= 1, name, "a noise level in [0, 1]", getattr(self, name))
        similarity = self.similarity is None or -1 <= self.similarity <= 1
        require(similarity, "similarity", "a cosine, in [-1, 1]", self.similarity)
        require(self.guidance is None or self.guidance >= 0, "guidance", "0 or more", self.guidance)
        require(self.num >= 2, "num", "at least 2", self.num)
        require(
            self.sampler is None or self.sampler in SAMPLER_NAMES, "sampler", f"one of {', '.join(SAMPLER_NAMES)}", self.sampler
        )
        require(self.num_steps is None or self.num_steps >= 1, "num_steps", "at least 1", self.num_steps)
