"""The settings of the demo's evaluation."""

from __future__ import annotations

from semantica.config import config, require


@config
class EvaluateConfig:
    """guidance: the w whose figures stand first. centred: subtract the corpus mean before cosines, where the pair score did.

    inception, perceptual: use those metrics' weights when they are there.
    """

    guidance: float = 0.5
    centred: bool = False
    inception: bool = True
    perceptual: bool = True
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.guidance >= 0, "guidance", "0 or more", self.guidance)
        require(self.batch_size > 0, "batch_size", "positive", self.batch_size)
