"""The settings of drawing. No torch here, so that a command reads its settings without loading it."""

from __future__ import annotations

from semantica.conditioning.signals import constants_of
from semantica.config import config, free, require
from semantica.diffusion.settings import GuidanceConfig, SamplerConfig
from semantica.training.recipe import Precision


@config
class SpeedConfig:
    """Arithmetic of drawing. precision: that of weights and products; z, x_hat and the sampler are float32 always."""

    precision: Precision = "float32"
    compile: bool = free(False)  # one graph, on CUDA captured and replayed; a minute at the start. Samples differ by rounding


@config
class GenerateConfig:
    """What is drawn: samples_per_condition samples at each guidance w, for each of num_conditions held-out conditioning images.

    similarity: the requested similarity to the conditioning image, as the band's score measures it; for denoisers that take one.
    signals: a value of a declared signal for all pictures, as NAME=NUMBER, NAME=NUMBER,NUMBER,... or NAME=none.
    """

    guidance: tuple[float, ...] = (0.0, 0.1, 0.2, 0.5, 1.0)
    beyond: GuidanceConfig = GuidanceConfig()
    sampler: SamplerConfig = SamplerConfig()
    similarity: float | None = None
    signals: tuple[str, ...] = ()
    speed: SpeedConfig = SpeedConfig()
    num_conditions: int = 64
    samples_per_condition: int = 1
    use_ema: bool = True
    batch_size: int = 32  # samples per shard; fewer at once when memory does not hold them
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.guidance) > 0 and min(self.guidance) >= 0, "guidance", "weights of 0 or more", self.guidance)
        require(len(set(self.guidance)) == len(self.guidance), "guidance", "all different", self.guidance)
        similarity = self.similarity is None or -1 <= self.similarity <= 1
        require(similarity, "similarity", "a cosine, in [-1, 1]", self.similarity)
        constants_of(self.signals)
        for name in ("num_conditions", "samples_per_condition", "batch_size"):
            require(getattr(self, name) > 0, name, "positive", getattr(self, name))
