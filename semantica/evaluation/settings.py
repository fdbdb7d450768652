"""What an evaluation asks for: which protocols, on how many pictures, at which w, measured by which networks.

Defaults are the paper's (method section 5) where it names them; the others are choices [C].
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from semantica.config import config, free, require
from semantica.diffusion.settings import GuidanceConfig, SamplerConfig
from semantica.generation.settings import GenerateConfig, SpeedConfig

ProtocolName = Literal["curve", "one-shot", "grouping", "training", "details", "grids"]
ExtractorName = Literal["inception", "inception-clean", "dinov2", "encoder"]
EXTRACTORS: tuple[str, ...] = get_args(ExtractorName)
PerceptualName = Literal["lpips-alex", "lpips-vgg", "lpips-squeeze", "st-lpips-alex"]


@config
class EvaluationConfig:
    """protocol: one or several. num: conditioning images of a curve, one sample each; more than there are pictures: several each.

    reference: what samples are compared with, all pictures of the set (the paper) or those that are no conditioning images.
    num_seeds, num_condition_sets: over how many sampling seeds, and sets of conditioning images, the standard errors are taken.
    """

    protocol: tuple[ProtocolName, ...] = ("curve",)
    num: int = 50_000
    guidance: tuple[float, ...] = (0.0, 0.1, 0.2, 0.5, 1.0, 1.5)
    table_guidance: tuple[float, ...] = (0.0, 0.5)  # of one-shot and grouping, the w of Table 1
    training_guidance: float = 0.0  # of Fig. 2
    num_copies: int = 50  # samples a class of one-shot, of the sets that num_copies_of does not name
    num_copies_of: tuple[str, ...] = ()  # NAME=NUMBER: samples a class of one set, such as the paper's sun397=120
    num_seeds: int = 1
    num_condition_sets: int = 1
    details_guidance: float = 0.5
    num_grid_rows: int = 8
    num_grid_samples: int = 4
    reference: Literal["all", "others"] = "all"
    num_reference: int | None = None  # a random choice of so many; None: all
    # Named: these, or an error where weights are missing. None: those of the usual ones that are here, the report says what is not.
    extractor: tuple[ExtractorName, ...] | None = None
    perceptual: tuple[PerceptualName, ...] | None = None
    centred: bool = False  # subtract the corpus mean before cosines, where the pair score did
    num_details: int = 10_000  # at most so many samples and pictures enter kernel distance, manifold and nearest pictures
    neighbours: int = 5  # k of the manifold: of precision, recall, density and coverage
    num_train: int = 50_000  # training pictures that samples are compared with, where they are given
    weights: str = free("")  # a folder where weights of metrics are looked for first
    allow_network: bool = free(False)  # fetch weights of metrics that are not on this machine
    picture_px: int | None = (
        None  # side that pictures are stored with, best that of the training; None: what encoder or model needs
    )
    sampler: SamplerConfig = SamplerConfig(num_steps=512)
    beyond: GuidanceConfig = GuidanceConfig()
    similarity: float | None = None
    speed: SpeedConfig = SpeedConfig()
    use_ema: bool = True
    batch_size: int = 32  # samples drawn at once, in batches that are always filled to it, so that no sample depends on the others
    seed: int = 0

    @classmethod
    def drawn_as(cls, drawing: GenerateConfig, *, centred: bool) -> EvaluationConfig:
        """The defaults, with samples that are drawn as jobs.generate draws them."""
        return cls(sampler=drawing.sampler, beyond=drawing.beyond, speed=drawing.speed, centred=centred)

    def __post_init__(self) -> None:
        self.draws()  # refuses what it shares with jobs.generate
        require(len(self.protocol) > 0, "protocol", "one or several", self.protocol)
        require(len(set(self.protocol)) == len(self.protocol), "protocol", "all different", self.protocol)
        for name in ("guidance", "table_guidance"):
            weights = getattr(self, name)
            require(len(weights) > 0 and min(weights) >= 0, name, "weights of 0 or more", weights)
            require(len({f"{w:g}" for w in weights}) == len(weights), name, "all different", weights)
        for name in ("training_guidance", "details_guidance"):
            require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        require(self.num >= 2, "num", "2 or more: one sample has no covariance", self.num)
        for name in ("num_copies", "num_seeds", "num_condition_sets", "num_grid_rows", "num_grid_samples", "neighbours"):
            require(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        for text in self.num_copies_of:
            is_number = re.fullmatch(r"[\w.-]+=[1-9]\d*", text) is not None
            require(is_number, "num_copies_of", "NAME=NUMBER, 1 or more", text)
        named = [text.split("=")[0] for text in self.num_copies_of]
        require(len(set(named)) == len(named), "num_copies_of", "one number a set", self.num_copies_of)
        for name in ("num_details", "num_train"):
            require(getattr(self, name) >= 2, name, "2 or more", getattr(self, name))
        require(self.num_reference is None or self.num_reference >= 2, "num_reference", "2 or more", self.num_reference)
        require(self.picture_px is None or 1 <= self.picture_px <= 4096, "picture_px", "in 1..4096", self.picture_px)
        require(self.extractor is None or len(self.extractor) > 0, "extractor", "one or several", self.extractor)
        for name in ("extractor", "perceptual"):
            names = getattr(self, name) or ()
            require(len(set(names)) == len(names), name, "all different", names)

    @property
    def own_copies(self) -> dict[str, int]:
        """Samples a class of the sets that num_copies_of names."""
        return {name: int(number) for name, number in (text.split("=") for text in self.num_copies_of)}

    def draws(self) -> GenerateConfig:
        """How one sample is drawn: everything that its pixels depend on besides checkpoint, conditioning image, w, seed, index."""
        return GenerateConfig(
            beyond=self.beyond,
            sampler=self.sampler,
            similarity=self.similarity,
            speed=self.speed,
            use_ema=self.use_ema,
            batch_size=self.batch_size,
            seed=self.seed,
        )
