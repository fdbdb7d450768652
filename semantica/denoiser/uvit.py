"""U-ViT (Hoogeboom 2023): a U-Net whose fine stages are convolutional and whose coarse stages are transformers.

z (B, C, H, W), logsnr (B,) and Conditioning in, v_hat (B, C, H, W) out; `diffusion.process.bind_with` makes a Denoise of it.
Knows nothing of schedules, losses and samplers. [C] marks a choice where the papers are silent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from semantica.conditioning.signals import IMAGES, SIMILARITY, Enters
from semantica.conditioning.values import Conditioning, SignalValues
from semantica.denoiser.configs import DenoiserConfig, StageConfig
from semantica.denoiser.layers import (
    Context,
    ConvBlock,
    Embedding,
    KeyGrid,
    KeysValues,
    LearnedVectors,
    Maps,
    MergeSkip,
    NoiseEmbedding,
    Places,
    TransformerBlock,
    initialise,
    patchify,
    unpatchify,
    zero,
)
from semantica.denoiser.signals import (
    MODULES,
    PooledEmbedding,
    SignalModule,
    SimilarityEmbedding,
    TokenContext,
)
from semantica.errors import DataError


@dataclass(frozen=True)
class Prepared:
    """What a network makes of a Conditioning, the same at every noise level: (B, E) to add to the noise embedding, or None; for
    every stage, in the order of use, what each block attends to; and maps to add to those of the input layer, or None.
    """

    embedding: Embedding | None
    stages: tuple[tuple[Context | KeysValues | None, ...], ...]
    maps: Maps | None = None


class Stage(nn.Module):
    """The blocks of one stage in one direction. On the way up each block first merges the skip of its mirror image."""

    def __init__(self, config: DenoiserConfig, index: int, *, up: bool) -> None:
        super().__init__()
        stage = config.stages[index]
        self.side = config.stage_side(index)
        self.is_sequence = stage.kind == "transformer"
        self.recomputed = False  # activation checkpointing: a block keeps its input, and runs again in the backward pass
        # A learned vector for each position, added where the picture first enters the stage: resolution is fixed, so nothing
        # has to extrapolate, it costs no FLOP in attention, and the convolutions before and the skips after carry it on [C].
        self.position = LearnedVectors(self.side**2, stage.channels, std=0.02) if self.is_sequence and not up else None
        self.blocks = nn.ModuleList(_block(config, index) for _ in range(stage.num_blocks))
        self.merges = nn.ModuleList(
            MergeSkip(_norm(config, stage), _norm(config, stage)) for _ in range(stage.num_blocks if up else 0)
        )

    def keys_values(self, context: Context | None) -> tuple[KeysValues | None, ...]:
        """What each block attends to, computed; None for a block that attends to itself only."""
        layers = [getattr(block, "cross_attention", None) for block in self.blocks]
        return tuple(None if layer is None else layer.keys_values(context) for layer in layers)

    def forward(
        self,
        h: Maps,
        embedding: Embedding,
        contexts: tuple[Context | KeysValues | None, ...],
        skips: list[Tensor],
        taps: list[Tensor] | None = None,
    ) -> Maps:
        """Appends each block's output to `skips` on the way down, takes them from its end on the way up. `taps` gets them too."""
        if self.is_sequence:
            h = h.flatten(2).transpose(1, 2)
        if self.position is not None:
            h = h + self.position()
        for index, block in enumerate(self.blocks):
            if self.merges:
                h = self.merges[index](h, skips.pop())
            h = self._run(block, h, embedding, contexts[index])
            if not self.merges:
                skips.append(h)
            if taps is not None:
                taps.append(self._maps(h))
        return self._maps(h)

    def _maps(self, h: Tensor) -> Maps:
        return h.transpose(1, 2).reshape(len(h), -1, self.side, self.side) if self.is_sequence else h

    def _run(self, block: nn.Module, h: Tensor, embedding: Embedding, context: Context | KeysValues | None) -> Tensor:
        if self.recomputed and torch.is_grad_enabled():
            return cast("Tensor", checkpoint(block, h, embedding, context, use_reentrant=False))
        return cast("Tensor", block(h, embedding, context))


def _block(config: DenoiserConfig, index: int) -> nn.Module:
    stage, width = config.stages[index], config.noise_embedding_dim
    if stage.kind == "conv":
        return ConvBlock(stage.channels, width, config.norm_groups, stage.dropout)
    places = _places(config, config.stage_side(index)) if config.token_places else None
    return TransformerBlock(stage.channels, width, config.context_dim, config.head_dim, config.mlp_ratio, stage.dropout, places)


def _places(config: DenoiserConfig, side: int) -> Places:
    """A class token and the tokens of declared signals have no place."""
    others = sum(signal.num for signal in config.signals if signal.enters == "tokens")
    grid = KeyGrid(config.grid_side, config.max_images, config.num_tokens - config.grid_side**2, others)
    return Places(side, grid, config.head_dim)


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
        patch_channels = config.channels * config.patch_px**2
        self.noise = NoiseEmbedding(config.noise_embedding_dim)
        width, images = config.noise_embedding_dim, config.max_images
        self.tokens = None if config.context_dim is None else TokenContext(config.context_dim, images, config.standardised_tokens)
        self.pooled = None if config.conditioning == "cross_attention" else PooledEmbedding(config.pooled_dim, width, images)
        self.similarity = SimilarityEmbedding(width) if config.similarity else None
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
        # Made and drawn last: the weights of everything else are those of a network without them.
        widths = {"tokens": config.token_dim, "film": width, "channels": stages[0].channels}
        for signal in config.signals:
            module = MODULES[signal.enters](signal, widths[signal.enters], config.patch_px)
            initialise(module, generator)
            self.add_module(f"signal_{signal.name}", module)

    def learn_tokens(self, mean: Float[Tensor, " d"], std: Float[Tensor, " d"]) -> None:
        """Take the statistics of the tokens of the training pictures, per channel, where the configuration says so."""
        if self.tokens is not None and self.tokens.standard is not None:
            self.tokens.standard.learn(mean, std)

    @property
    def stages(self) -> list[Stage]:
        """All stages in the order of use: down, lowest, up."""
        return cast("list[Stage]", [*self.down, self.lowest, *self.up])

    def prepare(self, cond: Conditioning) -> Prepared:
        """What `forward` makes of the conditioning, to be passed in its place: a sampler needs it once a picture, not once a step.

        Raises DataError when the conditioning does not have the configured shape.
        """
        values = self._values(cond)
        context = self._context(values)
        stages = tuple(stage.keys_values(context) for stage in self.stages)
        return Prepared(self._sum("film", values), stages, self._sum("channels", values))

    def forward(
        self,
        z: Float[Tensor, "b c h w"],
        logsnr: Float[Tensor, " b"],
        cond: Conditioning | Prepared,
        taps: list[Tensor] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """v_hat, or what the network was trained to output. Raises DataError for z or conditioning of another shape.

        taps: a list to which the output of each block of the lowest stage and of those on the way up is appended, in their order.
        """
        _expect("z", (len(z), *self.config.shape), z)
        # Not `prepare`: within a block, keys and values need not be kept for the backward pass of a block that is run again.
        prepared = cond if isinstance(cond, Prepared) else self._unprepared(cond)
        embedding = self.noise(logsnr)
        if prepared.embedding is not None:
            embedding = embedding + prepared.embedding
        embedding = F.silu(embedding)
        contexts = iter(prepared.stages)

        skips: list[Tensor] = []
        h = self.head_in(patchify(z.to(self.head_in.weight.dtype), self.config.patch_px))
        if prepared.maps is not None:
            h = h + prepared.maps
        for stage, narrow in zip(self.down, self.narrow, strict=True):
            h = narrow(F.avg_pool2d(stage(h, embedding, next(contexts), skips), 2))
        h = self.lowest(h, embedding, next(contexts), [], taps)
        for stage, widen in zip(self.up, self.widen, strict=True):
            h = stage(F.interpolate(widen(h), scale_factor=2.0, mode="nearest"), embedding, next(contexts), skips, taps)
        out: Tensor = unpatchify(self.head_out(F.silu(self.norm_out(h))), self.config.patch_px)
        return out.to(z.dtype)

    def _unprepared(self, cond: Conditioning) -> Prepared:
        values = self._values(cond)
        context = self._context(values)
        stages = tuple((context,) * len(stage.blocks) for stage in self.stages)
        return Prepared(self._sum("film", values), stages, self._sum("channels", values))

    def _modules_of(self, entry: Enters) -> list[SignalModule]:
        declared = (getattr(self, f"signal_{signal.name}") for signal in self.config.signals)
        named = (self.tokens, self.pooled, self.similarity, *declared)
        return [cast("SignalModule", module) for module in named if module is not None and module.entry == entry]

    def _context(self, values: Mapping[str, SignalValues]) -> Context | None:
        parts = [module(values[module.signal]) for module in self._modules_of("tokens")]
        return torch.cat(parts, dim=1) if len(parts) > 1 else next(iter(parts), None)

    def _sum(self, entry: Enters, values: Mapping[str, SignalValues]) -> Tensor | None:
        parts = [module(values[module.signal]) for module in self._modules_of(entry)]
        return sum(parts[1:], parts[0]) if parts else None

    def _values(self, cond: Conditioning) -> dict[str, SignalValues]:
        """The values of every signal that the network takes. Signals and images that `cond` lacks are absent."""
        config, rows, device = self.config, len(cond), cond.present.device
        values = {IMAGES: self._images(cond.signals[IMAGES])}
        if self.similarity is not None:
            nothing = SignalValues({SIMILARITY: torch.zeros(rows, device=device)}, torch.zeros_like(cond.is_null))
            values[SIMILARITY] = cond.signals.get(SIMILARITY, nothing)
        for signal in config.signals:
            if signal.name in cond.signals:
                values[signal.name] = cond.signals[signal.name]
                shape = (rows, *signal.shape(config.resolution_px))
                _expect(signal.name, shape, values[signal.name].tensors[signal.name])
            else:
                values[signal.name] = SignalValues.absent(signal, rows, config.resolution_px, device)
        return values

    def _images(self, given: SignalValues) -> SignalValues:
        """The images, filled up to max_images with absent ones."""
        config, (rows, images) = self.config, given.present.shape
        tokens, pooled = given.tensors["tokens"], given.tensors["pooled"]
        if images > config.max_images:
            raise DataError(f"denoiser: it takes at most {config.max_images} conditioning images (max_images), got {images}")
        if self.tokens is not None:
            _expect("tokens", (rows, images, config.num_tokens, config.token_dim), tokens)
        if self.pooled is not None:
            _expect("pooled", (rows, images, config.pooled_dim), pooled)
        missing = config.max_images - images
        if not missing:
            return given
        tensors = {"tokens": F.pad(tokens, (0, 0, 0, 0, 0, missing)), "pooled": F.pad(pooled, (0, 0, 0, missing))}
        return SignalValues(tensors, F.pad(given.present, (0, missing)))


def _expect(name: str, shape: tuple[int, ...], got: Tensor) -> None:
    if got.shape != shape:
        remedy = "encode or resize as the DenoiserConfig says, or change it"
        raise DataError(f"denoiser: {name} must have shape {shape}, got {tuple(got.shape)}; {remedy}")
