"""The shape of a denoiser as settings, without torch, and its named sizes.

Beside each size: the parameters expected of it, and the GFLOP of forward and backward for one training image (1 multiply-accumulate
= 2 FLOPs); tests assert both within 2%.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from semantica.conditioning.signals import Signal
from semantica.config import config, require

ConditioningKind = Literal["cross_attention", "film", "both"]


@config
class StageConfig:
    """The blocks at one resolution; the same number goes down and, but for the lowest stage, up again."""

    channels: int
    num_blocks: int
    kind: Literal["conv", "transformer"]
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.channels >= 1, "channels", "at least 1", self.channels)
        require(self.num_blocks >= 1, "num_blocks", "at least 1", self.num_blocks)
        require(0 <= self.dropout < 1, "dropout", "in [0, 1)", self.dropout)


@config
class DenoiserConfig:
    """The shape of a U-ViT. `stages` from fine to coarse; resolution halves between two of them."""

    resolution_px: int
    patch_px: int  # 1: no patching, a 1×1 convolution in and out
    stages: tuple[StageConfig, ...]
    conditioning: ConditioningKind
    token_dim: int  # of the encoder's tokens; read by cross-attention only
    num_tokens: int
    pooled_dim: int  # of the encoder's pooled embedding; read by FiLM only
    noise_embedding_dim: int = 1024
    head_dim: int = 64  # [C]
    mlp_ratio: int = 4
    norm_groups: int = 32  # of the convolution stages' GroupNorm [C]
    max_images: int = 1  # conditioning images it takes; more than the paper's one costs their tokens in cross-attention
    similarity: bool = False  # whether it takes the wanted similarity to the conditioning image, which the paper suggests
    channels: int = 3  # of z and v_hat: 3 for pictures; a vector of D numbers has D channels at resolution_px 1
    signals: tuple[Signal, ...] = ()  # what else it is told, one declaration per signal: in YAML or a preset
    # For small trainings, and not in the paper: tokens standardised per channel over the training pictures, and
    # one fixed code of its place in the picture added to each query and key of cross-attention.
    standardised_tokens: bool = False
    token_places: bool = False

    def __post_init__(self) -> None:
        for name in ("resolution_px", "patch_px", "token_dim", "num_tokens", "pooled_dim", "head_dim", "mlp_ratio"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("norm_groups", "max_images", "channels"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(len(self.stages) >= 1, "stages", "at least one stage", self.stages)
        require(
            self.noise_embedding_dim >= 4 and self.noise_embedding_dim % 2 == 0,
            "noise_embedding_dim",
            "even and at least 4",
            self.noise_embedding_dim,
        )
        step = self.patch_px * 2 ** (len(self.stages) - 1)
        require(
            self.resolution_px % step == 0,
            "resolution_px",
            f"a multiple of {step} (patch_px times 2 for each of {len(self.stages) - 1} halvings)",
            self.resolution_px,
        )
        for index, stage in enumerate(self.stages):
            name, unit = ("norm_groups", self.norm_groups) if stage.kind == "conv" else ("head_dim", self.head_dim)
            require(stage.channels % unit == 0, f"stages.{index}.channels", f"a multiple of {name} {unit}", stage.channels)
        kinds = [stage.kind for stage in self.stages]
        fits = self.conditioning == "film" or "transformer" in kinds
        require(fits, "conditioning", "film without a transformer stage", self.conditioning)
        for name in ("standardised_tokens", "token_places"):
            require(not getattr(self, name) or self.conditioning != "film", name, "False without cross-attention", True)
        square = self.grid_side**2 in (self.num_tokens, self.num_tokens - 1)
        places = f"False for {self.num_tokens} tokens, which are no square grid with or without a class token before it"
        require(not self.token_places or square, "token_places", places, self.token_places)
        even = self.head_dim % 4 == 0
        require(not self.token_places or even, "token_places", f"False unless head_dim = {self.head_dim} is a multiple of 4", True)
        names = [signal.name for signal in self.signals]
        require(len(set(names)) == len(names), "signals", "different names", names)
        takes_tokens = self.conditioning != "film" or all(signal.enters != "tokens" for signal in self.signals)
        require(takes_tokens, "conditioning", "cross_attention or both for a signal that enters as tokens", self.conditioning)

    def stage_side(self, index: int) -> int:
        """Positions on a side at stage `index`."""
        return self.resolution_px // (self.patch_px << index)

    @property
    def grid_side(self) -> int:
        """Tokens on a side of the encoder's grid, rounded down."""
        return math.isqrt(self.num_tokens)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of z."""
        return self.channels, self.resolution_px, self.resolution_px

    @property
    def context_dim(self) -> int | None:
        """What transformer blocks attend to: token_dim, or None without cross-attention."""
        return None if self.conditioning == "film" else self.token_dim


_BASE_STAGES = (
    StageConfig(channels=128, num_blocks=3, kind="conv"),
    StageConfig(channels=256, num_blocks=3, kind="conv"),
    StageConfig(channels=512, num_blocks=3, kind="transformer", dropout=0.1),
    StageConfig(channels=1024, num_blocks=16, kind="transformer", dropout=0.1),
)


def base(conditioning: ConditioningKind = "cross_attention", token_dim: int = 768, num_tokens: int = 257) -> DenoiserConfig:
    """Semantica's baseline, "2×2 patching" (arXiv 2405.14857, section 4), for DINOv2 ViT-B/14: 463 M parameters, 955 GFLOP."""
    return DenoiserConfig(
        resolution_px=256,
        patch_px=2,
        stages=_BASE_STAGES,
        conditioning=conditioning,
        token_dim=token_dim,
        num_tokens=num_tokens,
        pooled_dim=token_dim,
    )


def base_no_patch(
    conditioning: ConditioningKind = "cross_attention", token_dim: int = 768, num_tokens: int = 257
) -> DenoiserConfig:
    """Semantica's "no patching": `base` with one more convolution stage at 256² (arXiv 2405.14857): 465 M, 1,422 GFLOP."""
    return DenoiserConfig(
        resolution_px=256,
        patch_px=1,
        stages=(StageConfig(channels=128, num_blocks=2, kind="conv"), *_BASE_STAGES),
        conditioning=conditioning,
        token_dim=token_dim,
        num_tokens=num_tokens,
        pooled_dim=token_dim,
    )


def final(conditioning: ConditioningKind = "cross_attention", token_dim: int = 1024, num_tokens: int = 257) -> DenoiserConfig:
    """Semantica's final model (arXiv 2405.14857): `base_no_patch` with all channels but the first stage's doubled, for DINOv2
    ViT-L/14: 1,481 M parameters, 4,098 GFLOP.
    """
    return DenoiserConfig(
        resolution_px=256,
        patch_px=1,
        stages=(
            StageConfig(channels=128, num_blocks=2, kind="conv"),
            StageConfig(channels=256, num_blocks=3, kind="conv"),
            StageConfig(channels=512, num_blocks=3, kind="conv"),
            StageConfig(channels=1024, num_blocks=3, kind="transformer", dropout=0.1),
            StageConfig(channels=2048, num_blocks=16, kind="transformer", dropout=0.1),
        ),
        conditioning=conditioning,
        token_dim=token_dim,
        num_tokens=num_tokens,
        pooled_dim=token_dim,
    )


def small(conditioning: ConditioningKind = "cross_attention", token_dim: int = 768, num_tokens: int = 257) -> DenoiserConfig:
    """This project's 64 px size for one GPU, without patching, for DINOv2 ViT-B/14: 84 M parameters, 135 GFLOP."""
    return DenoiserConfig(
        resolution_px=64,
        patch_px=1,
        stages=(
            StageConfig(channels=128, num_blocks=2, kind="conv"),
            StageConfig(channels=256, num_blocks=3, kind="conv"),
            StageConfig(channels=512, num_blocks=8, kind="transformer", dropout=0.1),
        ),
        conditioning=conditioning,
        token_dim=token_dim,
        num_tokens=num_tokens,
        pooled_dim=token_dim,
    )


def tiny(
    conditioning: ConditioningKind = "both",
    resolution_px: int = 32,
    token_dim: int = 384,
    num_tokens: int = 65,
    pooled_dim: int = 384,
) -> DenoiserConfig:
    """This project's demo size: 3.4 M parameters, 0.87 GFLOP, 67 training images/s on one CPU thread (shared AMD EPYC, float32).

    Of the five shapes trained on 32 px emoji the best by far: after 60 s of CPU its eps-loss is 0.098, that of the same shape
    with 2×2 patching 0.127 although that takes 30% more steps. Made for batch 16 a worker, lr 2e-3, EMA decay 0.995.
    """
    return DenoiserConfig(
        resolution_px=resolution_px,
        patch_px=1,
        stages=(
            StageConfig(channels=32, num_blocks=1, kind="conv"),
            StageConfig(channels=48, num_blocks=1, kind="conv"),
            StageConfig(channels=128, num_blocks=1, kind="transformer"),
            StageConfig(channels=192, num_blocks=2, kind="transformer"),
        ),
        conditioning=conditioning,
        token_dim=token_dim,
        num_tokens=num_tokens,
        pooled_dim=pooled_dim,
        noise_embedding_dim=192,
        head_dim=32,
        norm_groups=16,
    )


def shapes(denoiser: DenoiserConfig) -> tuple[DenoiserConfig, DenoiserConfig]:
    """The denoiser (with 2×2 patching, without), the pair of the paper's Fig. 2. One is `denoiser`; the finest stage differs."""
    if denoiser.patch_px == 1:
        return replace(denoiser, patch_px=2, stages=denoiser.stages[1:]), denoiser
    finest = StageConfig(channels=denoiser.stages[0].channels, num_blocks=2, kind="conv")
    return denoiser, replace(denoiser, patch_px=1, stages=(finest, *denoiser.stages))
