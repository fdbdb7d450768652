"""What an evaluation asks for: which protocols, on how many pictures, at which w, measured by which networks.

Defaults are the paper's (method section 5) where it names them; the others are choices [C].
"""

from __future__ import annotations

import re
from typing import Literal

from semantica.config import config, free, require
from semantica.diffusion.settings import GuidanceConfig, SamplerConfig
from semantica.generation.settings import GenerateConfig, SpeedConfig


@config
class OverviewConfig:
    """Settings of the protocol `overview`, with which a pipeline ends, on samples of semantica generate.

    guidance: the w whose figures stand first. centred: subtract the corpus mean before cosines, where the pair score did.
    inception, perceptual: use these networks where their weights are on this machine.
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


@config
class EvaluationConfig:
    """protocol: one or several of curve, one-shot, grouping, training, details, grids; or overview alone.

    extractor: of inception, inception-clean, dinov2, encoder. perceptual: of lpips-alex, lpips-vgg, lpips-squeeze, st-lpips-alex.
    Both: what is named must be here; without names, the usual ones that are here measure, and the report names the others.
    num: samples of a curve, one per conditioning image; more than there are pictures: several each.

    reference: what samples are compared with, all pictures of the set (the paper) or those that are no conditioning images.
    num_seeds, num_condition_sets: over how many sampling seeds, and sets of conditioning images, the standard errors are taken.
    """

    protocol: tuple[str, ...] = ("curve",)
    num: int = 50_000
    samples_per_condition: int = 1  # of the `num` samples
    guidance: tuple[float, ...] = (0.0, 0.1, 0.2, 0.5, 1.0, 1.5)
    table_guidance: tuple[float, ...] = (0.0, 0.5)  # of one-shot and grouping, the w of Table 1
    training_guidance: float = 0.0  # of Fig. 2
    num_copies: int = 50  # samples per class of one-shot, of sets that num_copies_of does not name
    num_copies_of: tuple[str, ...] = ()  # NAME=NUMBER: samples per class of one set, such as the paper's sun397=120
    num_seeds: int = 1
    num_condition_sets: int = 1
    details_guidance: float = 0.5  # of details; in overview the w whose figures stand first
    num_grid_rows: int = 8
    num_grid_samples: int = 4
    reference: Literal["all", "others"] = "all"
    num_reference: int | None = None  # how many pictures of it, chosen at random; None: all
    extractor: tuple[str, ...] | None = None
    perceptual: tuple[str, ...] | None = None
    centred: bool = False  # subtract the corpus mean before cosines, where the pair score did
    num_details: int = 10_000  # samples and pictures that enter kernel distance, manifold and nearest pictures, at most
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
    signals: tuple[str, ...] = ()  # NAME=NUMBER,... or NAME=none: a value of a declared signal, for all samples
    speed: SpeedConfig = SpeedConfig()
    use_ema: bool = True
    batch_size: int = 32  # samples drawn at once, in batches that are always filled to it, so that no sample depends on the others
    seed: int = 0
    baseline_seed: int = 0  # of the choice of training pictures and of noise, which overview puts beside samples

    @classmethod
    def of_samples(
        cls, config: OverviewConfig, drawing: GenerateConfig, num: int, extractor: tuple[str, ...], perceptual: tuple[str, ...]
    ) -> EvaluationConfig:
        """The protocol `overview` of `num` samples at each w that semantica generate drew so. perceptual: at most one net."""
        return cls(
            protocol=("overview",),
            num=num,
            samples_per_condition=drawing.samples_per_condition,
            guidance=drawing.guidance,
            details_guidance=config.guidance,
            reference="others",
            extractor=extractor,
            perceptual=perceptual,
            centred=config.centred,
            sampler=drawing.sampler,
            beyond=drawing.beyond,
            similarity=drawing.similarity,
            signals=drawing.signals,
            speed=drawing.speed,
            use_ema=drawing.use_ema,
            batch_size=config.batch_size,
            seed=drawing.seed,
            baseline_seed=config.seed,
        )

    def overview(self) -> OverviewConfig:
        """The same for given samples, whose drawing is known."""
        return OverviewConfig(
            guidance=self.details_guidance,
            centred=self.centred,
            inception=self.extractor is None or "inception" in self.extractor,
            perceptual=self.perceptual is None or len(self.perceptual) > 0,
            batch_size=self.batch_size,
            seed=self.baseline_seed,
        )

    @classmethod
    def drawn_as(cls, drawing: GenerateConfig, *, centred: bool) -> EvaluationConfig:
        """The defaults, with samples that are drawn as semantica generate draws them."""
        return cls(sampler=drawing.sampler, beyond=drawing.beyond, speed=drawing.speed, centred=centred)

    def __post_init__(self) -> None:
        self.draws()  # refuses what it shares with semantica generate
        require(len(self.protocol) > 0, "protocol", "one or several", self.protocol)
        require(len(set(self.protocol)) == len(self.protocol), "protocol", "all different", self.protocol)
        for name in ("guidance", "table_guidance"):
            weights = getattr(self, name)
            require(len(weights) > 0 and min(weights) >= 0, name, "weights of 0 or more", weights)
            require(len({f"{w:g}" for w in weights}) == len(weights), name, "all different", weights)
        for name in ("training_guidance", "details_guidance"):
            require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        require(self.num >= 2, "num", "2 or more: one sample has no covariance", self.num)
        for name in (
            "num_copies",
            "num_seeds",
            "num_condition_sets",
            "num_grid_rows",
            "num_grid_samples",
            "neighbours",
            "samples_per_condition",
        ):
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
            signals=self.signals,
            speed=self.speed,
            use_ema=self.use_ema,
            batch_size=self.batch_size,
            seed=self.seed,
        )
