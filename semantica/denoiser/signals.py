"""What the denoiser makes of each signal of the conditioning: tokens for cross-attention, a vector for the noise embedding, or maps
beside z; and the learned null that stands in where the signal is absent.

One module per signal and way of entering. A module for declared signals is registered by that way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semantica.conditioning.signals import IMAGES, SIMILARITY, Enters, Signal
from semantica.conditioning.values import SignalValues
from semantica.config.registry import Registry
from semantica.denoiser.layers import LearnedVectors, Maps, fourier_features, patchify, zero


class SignalModule(nn.Module):
    """values -> what enters the network. `signal`: the name of the signal in a Conditioning; `entry`: where the result goes."""

    entry: Enters

    def __init__(self, signal: str) -> None:
        super().__init__()
        self.signal = signal

    def forward(self, values: SignalValues) -> Tensor:
        """Tokens (B, N, D), a vector (B, E), or maps (B, C, H, W). Null rows hold what was learned for them."""
        raise NotImplementedError


class Standard(nn.Module):
    """(tokens - mean) / std per channel. Both are weights without gradients, so that every checkpoint and release has them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(dim), requires_grad=False)
        self.std = nn.Parameter(torch.ones(dim), requires_grad=False)

    def forward(self, tokens: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return (tokens - self.mean) / self.std

    @torch.no_grad()
    def learn(self, mean: Float[Tensor, " d"], std: Float[Tensor, " d"]) -> None:
        """Take the statistics of the training pictures. A channel that never changes keeps its scale."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 0, std, 1))


class TokenContext(SignalModule):
    """Tokens of the images -> context of cross-attention, (B, K N, D): LayerNorm without affine (keys and values learn one).

    The tokens of K images stand side by side; when a network takes more than one, each image's tokens get the learned vector of
    its place [C]. Where there is no image, one learned null vector stands at every position: attention over equal keys is that
    vector's value whatever the weights, so a vector per position would add N D parameters and a constant at most.
    """

    entry = "tokens"

    def __init__(self, token_dim: int, max_images: int, standardised: bool = False) -> None:
        super().__init__(IMAGES)
        self.standard = Standard(token_dim) if standardised else None
        self.null = LearnedVectors(1, token_dim, std=1.0)  # as a normalised token is distributed
        self.place = LearnedVectors(max_images, token_dim, std=0.02) if max_images > 1 else None

    def forward(self, values: SignalValues) -> Float[Tensor, "b n d"]:
        null = self.null()
        tokens = values.tensors["tokens"].to(null.dtype)
        if self.standard is not None:
            tokens = self.standard(tokens)
        context = torch.where(values.present[:, :, None, None], F.layer_norm(tokens, tokens.shape[-1:]), null).to(null.dtype)
        if self.place is not None:
            context = context + self.place()[:, None]
        return context.flatten(1, 2)


class PooledEmbedding(SignalModule):
    """Pooled embeddings of the images -> (B, E) for the noise embedding: L2-normalised times √D, averaged over images, then dense.

    The L2 norm keeps the directions, on which the encoder's cosines (and the band) are measured; √D makes entries of order 1.
    Null rows hold a learned vector in place of the average.
    """

    entry = "film"

    def __init__(self, pooled_dim: int, embedding_dim: int, max_images: int) -> None:
        super().__init__(IMAGES)
        self.null = LearnedVectors(1, pooled_dim, std=1.0)
        self.place = LearnedVectors(max_images, pooled_dim, std=0.02) if max_images > 1 else None
        self.dense = nn.Linear(pooled_dim, embedding_dim)

    def forward(self, values: SignalValues) -> Float[Tensor, "b e"]:
        null, pooled = self.null(), values.tensors["pooled"]
        pooled = F.normalize(pooled.to(null.dtype), dim=2) * math.sqrt(pooled.shape[2])
        if self.place is not None:
            pooled = pooled + self.place()
        present = values.present[:, :, None]
        mean = torch.where(present, pooled, 0).sum(1) / present.sum(1).clamp(min=1)
        out: Tensor = self.dense(torch.where(values.is_present[:, None], mean, null).to(null.dtype))
        return out


class SimilarityEmbedding(SignalModule):
    """The wanted similarity -> (B, E) for the noise embedding: Fourier features, then a dense layer, SiLU, a dense layer.

    Periods from 25 down to 0.1 of cosine [C]. Null rows hold a learned vector in place of the features.
    """

    entry = "film"

    def __init__(self, embedding_dim: int) -> None:
        super().__init__(SIMILARITY)
        self.dim = 64
        self.null = LearnedVectors(1, self.dim, std=math.sqrt(0.5))  # as cosines and sines are distributed
        self.dense_in = nn.Linear(self.dim, embedding_dim)
        self.dense_out = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, values: SignalValues) -> Float[Tensor, "b e"]:
        null, present = self.null(), values.present
        features = fourier_features(4 * torch.where(present, values.tensors[SIMILARITY], 0.0), self.dim).to(null.dtype)
        out: Tensor = self.dense_out(F.silu(self.dense_in(torch.where(present[:, None], features, null))))
        return out


ModuleOf: TypeAlias = Callable[[Signal, int, int], SignalModule]
"""(signal, width of what its module adds to, patch_px) -> the module."""

MODULES: Registry[ModuleOf] = Registry("way of entering", "semantica.denoiser.signals")
"""What makes the module of a declared signal, by the way in which the signal enters."""


@MODULES.register("tokens")
class DeclaredTokens(SignalModule):
    """(B, num, dim) tokens -> context beside that of the images: LayerNorm without affine, then dense to the images' token_dim."""

    entry = "tokens"

    def __init__(self, signal: Signal, width: int, patch_px: int) -> None:
        super().__init__(signal.name)
        self.null = LearnedVectors(1, width, std=1.0)
        self.dense = nn.Linear(signal.dim, width)

    def forward(self, values: SignalValues) -> Float[Tensor, "b n d"]:
        null = self.null()
        tokens = values.tensors[self.signal].to(null.dtype)
        dense = self.dense(F.layer_norm(tokens, tokens.shape[-1:]))
        return torch.where(values.present[:, None, None], dense, null).to(null.dtype)


@MODULES.register("film")
class DeclaredVector(SignalModule):
    """A vector (B, dim) -> (B, E) for the noise embedding: a dense layer, SiLU, a dense layer. Vectors should be of order 1."""

    entry = "film"

    def __init__(self, signal: Signal, width: int, patch_px: int) -> None:
        super().__init__(signal.name)
        self.null = LearnedVectors(1, signal.dim, std=1.0)
        self.dense_in = nn.Linear(signal.dim, width)
        self.dense_out = nn.Linear(width, width)

    def forward(self, values: SignalValues) -> Float[Tensor, "b e"]:
        null = self.null()
        vector = torch.where(values.present[:, None], values.tensors[self.signal].to(null.dtype), null)
        out: Tensor = self.dense_out(F.silu(self.dense_in(vector)))
        return out


@MODULES.register("channels")
class DeclaredChannels(SignalModule):
    """Maps (B, dim, H, W) -> maps that are added to the input layer's: a 3×3 convolution that starts at zero.

    The sum is what concatenation with zero weights for the new channels would give; so a trained denoiser that gets the signal
    computes the same as before, bit for bit, until it is trained on. Absent maps add nothing.
    """

    entry = "channels"

    def __init__(self, signal: Signal, width: int, patch_px: int) -> None:
        super().__init__(signal.name)
        self.patch_px = patch_px
        self.conv = zero(nn.Conv2d(signal.dim * patch_px**2, width, 3, padding=1, bias=False))

    def forward(self, values: SignalValues) -> Maps:
        maps = torch.where(values.present[:, None, None, None], values.tensors[self.signal], 0.0)
        maps = maps.to(cast("Tensor", self.conv.weight).dtype)
        out: Maps = self.conv(patchify(maps, self.patch_px))
        return out
