"""U-ViT (Hoogeboom 2023): a U-Net whose fine stages are convolutional and whose coarse stages are transformers.

z (B, 3, H, W), logsnr (B,) and Conditioning in, v_hat (B, 3, H, W) out; `diffusion.process.denoise_with` makes a Denoise of it.
Knows nothing of schedules, losses and samplers. [C] marks a choice where the papers are silent.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semantica.conditioning import Conditioning
from semantica.config import config, require
from semantica.denoiser.conditioning import ConditioningKind, NoiseEmbedding, PooledEmbedding, TokenContext
from semantica.denoiser.layers import (
    Context,
    ConvBlock,
    Embedding,
    LearnedVectors,
    Maps,
    MergeSkip,
    TransformerBlock,
    initialise,
    patchify,
    unpatchify,
    zero,
)
from semantica.errors import DataError


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

    def __post_init__(self) -> None:
        for name in ("resolution_px", "patch_px", "token_dim", "num_tokens", "pooled_dim", "head_dim", "mlp_ratio", "norm_groups"):
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
            require(stage.channels % unit == 0, f"stages[{index}].channels", f"a multiple of {name} {unit}", stage.channels)
        kinds = [stage.kind for stage in self.stages]
        fits = self.conditioning == "film" or "transformer" in kinds
        require(fits, "conditioning", "film without a transformer stage", self.conditioning)

    def stage_side(self, index: int) -> int:
        """Positions on a side at stage `index`."""
        return self.resolution_px // (self.patch_px << index)

    @property
    def context_dim(self) -> int | None:
        """What transformer blocks attend to: token_dim, or None without cross-attention."""
        return None if self.conditioning == "film" else self.token_dim


class Stage(nn.Module):
    """The blocks of one stage in one direction. On the way up each block first merges the skip of its mirror image."""

    def __init__(self, config: DenoiserConfig, index: int, *, up: bool) -> None:
        super().__init__()
        stage = config.stages[index]
        self.side = config.stage_side(index)
        self.is_sequence = stage.kind == "transformer"
        # A learned vector for each position, added where the picture first enters the stage: resolution is fixed, so nothing
        # has to extrapolate, it costs no FLOP in attention, and the convolutions before and the skips after carry it on [C].
        self.position = LearnedVectors(self.side**2, stage.channels, std=0.02) if self.is_sequence and not up else None
        self.blocks = nn.ModuleList(_block(config, stage) for _ in range(stage.num_blocks))
        self.merges = nn.ModuleList(
            MergeSkip(_norm(config, stage), _norm(config, stage)) for _ in range(stage.num_blocks if up else 0)
        )

    def forward(self, h: Maps, embedding: Embedding, context: Context | None, skips: list[Tensor]) -> Maps:
        """Appends each block's output to `skips` on the way down, takes them from its end on the way up."""
        if self.is_sequence:
            h = h.flatten(2).transpose(1, 2)
        if self.position is not None:
            h = h + self.position()
        for index, block in enumerate(self.blocks):
            if self.merges:
                h = self.merges[index](h, skips.pop())
            h = block(h, embedding, context)
            if not self.merges:
                skips.append(h)
        return h.transpose(1, 2).reshape(len(h), -1, self.side, self.side) if self.is_sequence else h


def _block(config: DenoiserConfig, stage: StageConfig) -> nn.Module:
    width = config.noise_embedding_dim
    if stage.kind == "conv":
        return ConvBlock(stage.channels, width, config.norm_groups, stage.dropout)
    return TransformerBlock(stage.channels, width, config.context_dim, config.head_dim, config.mlp_ratio, stage.dropout)


def _norm(config: DenoiserConfig, stage: StageConfig) -> nn.Module:
    return nn.GroupNorm(config.norm_groups, stage.channels) if stage.kind == "conv" else nn.LayerNorm(stage.channels)


class UViT(nn.Module):
    """The denoiser. Its output is exactly zero at the start.

    Weights are drawn from `generator` (None: torch's global one) and may be moved to any dtype: z, tokens and pooled are cast to
    it, v_hat comes back in z's. Control flow depends on the configuration only, never on data, so torch.compile sees one graph;
    null rows are chosen by `where`, so every parameter is in every graph. Dropout draws from torch's global generator.
    """

    def __init__(self, config: DenoiserConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        stages, lowest = config.stages, len(config.stages) - 1
        patch_channels = 3 * config.patch_px**2
        self.noise = NoiseEmbedding(config.noise_embedding_dim)
        self.tokens = None if config.context_dim is None else TokenContext(config.context_dim)
        self.pooled = (
            None if config.conditioning == "cross_attention" else PooledEmbedding(config.pooled_dim, config.noise_embedding_dim)
        )
        self.head_in = nn.Conv2d(patch_channels, stages[0].channels, 1)
        self.down = nn.ModuleList(Stage(config, index, up=False) for index in range(lowest))
        self.lowest = Stage(config, lowest, up=False)
        self.up = nn.ModuleList(Stage(config, index, up=True) for index in reversed(range(lowest)))
        # Between stages: 2×2 mean then 1×1 convolution down, 1×1 convolution then nearest neighbour up [C].
        self.narrow = nn.ModuleList(nn.Conv2d(a.channels, b.channels, 1) for a, b in pairwise(stages))
        self.widen = nn.ModuleList(nn.Conv2d(b.channels, a.channels, 1) for a, b in reversed(list(pairwise(stages))))
        self.norm_out = nn.GroupNorm(1, stages[0].channels)
        self.head_out = zero(nn.Conv2d(stages[0].channels, patch_channels, 1))
        initialise(self, generator)

    def forward(self, z: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning) -> Float[Tensor, "b 3 h w"]:
        """v_hat. Raises DataError when z or the conditioning does not have the configured shape."""
        self._check(z, cond)
        embedding = self.noise(logsnr)
        if self.pooled is not None:
            embedding = embedding + self.pooled(cond)
        embedding = F.silu(embedding)
        context = None if self.tokens is None else self.tokens(cond)

        skips: list[Tensor] = []
        h = self.head_in(patchify(z.to(self.head_in.weight.dtype), self.config.patch_px))
        for stage, narrow in zip(self.down, self.narrow, strict=True):
            h = narrow(F.avg_pool2d(stage(h, embedding, context, skips), 2))
        h = self.lowest(h, embedding, context, [])
        for stage, widen in zip(self.up, self.widen, strict=True):
            h = stage(F.interpolate(widen(h), scale_factor=2.0, mode="nearest"), embedding, context, skips)
        out: Tensor = unpatchify(self.head_out(F.silu(self.norm_out(h))), self.config.patch_px)
        return out.to(z.dtype)

    def _check(self, z: Tensor, cond: Conditioning) -> None:
        config = self.config
        _expect("z", (len(z), 3, config.resolution_px, config.resolution_px), z)
        if self.tokens is not None:
            _expect("tokens", (len(z), config.num_tokens, config.token_dim), cond.tokens)
        if self.pooled is not None:
            _expect("pooled", (len(z), config.pooled_dim), cond.pooled)


def _expect(name: str, shape: tuple[int, ...], got: Tensor) -> None:
    if got.shape != shape:
        remedy = "encode or resize as the DenoiserConfig says, or change it"
        raise DataError(f"denoiser: {name} must have shape {shape}, got {tuple(got.shape)}; {remedy}")
