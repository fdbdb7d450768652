"""The blocks of the U-ViT. Convolution stages work on maps (B, C, H, W), transformer stages on sequences (B, H W, C).

Every block is `(h, embedding, context) -> h`: the embedding (B, E) of noise (and pooled conditioning) scales and shifts it, the
context (B, N, D) is what it may attend to, as tokens or as the keys and values it makes of them. Residual branches end in a layer
that starts at zero, so a block starts as identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Maps = Float[Tensor, "b c h w"]
Sequence = Float[Tensor, "b n c"]
Embedding = Float[Tensor, "b e"]
Context = Float[Tensor, "b k d"]
KeysValues = tuple[Float[Tensor, "b _ k _"], Float[Tensor, "b _ k _"]]  # of all heads (B, heads, K, dim)


def patchify(x: Float[Tensor, "b c h w"], patch_px: int) -> Float[Tensor, "b c_patch h_patch w_patch"]:
    """Each patch_px² square as the channels of one position; patch_px = 1 is the identity."""
    return F.pixel_unshuffle(x, patch_px)


def unpatchify(x: Float[Tensor, "b c_patch h_patch w_patch"], patch_px: int) -> Float[Tensor, "b c h w"]:
    """The inverse of `patchify`."""
    return F.pixel_shuffle(x, patch_px)


def zero(layer: nn.Module) -> nn.Module:
    """The layer, marked so that `initialise` sets it to zero."""
    layer.starts_at_zero = True  # type: ignore[assignment]
    return layer


def initialise(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Fill all weights: dense and convolution N(0, 1/fan_in) with zero bias, marked layers zero, lone parameters as they say.

    Order and numbers depend only on the module and the generator (None: torch's global one), so a seed names a network.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            std = 0.0 if getattr(part, "starts_at_zero", False) else 1 / math.sqrt(part.weight[0].numel())
            if std:
                nn.init.normal_(part.weight, std=std, generator=generator)
            else:
                nn.init.zeros_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
            part.reset_parameters()
        elif isinstance(part, LearnedVectors):
            nn.init.normal_(part.vectors, std=part.std, generator=generator)


class LearnedVectors(nn.Module):
    """(num, dim) learned vectors that start at N(0, std²)."""

    def __init__(self, num: int, dim: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.vectors = nn.Parameter(torch.empty(num, dim))

    def forward(self) -> Float[Tensor, "n d"]:
        return self.vectors


def fourier_features(logsnr: Float[Tensor, " b"], num_features: int) -> Float[Tensor, "b f"]:
    """Cosines and sines of logsnr at frequencies from 1/16 to 16 radians a unit, geometrically spaced [C].

    Over [-15, 15] the slowest is monotone, so levels are told apart; the fastest resolves a tenth of a unit.
    """
    exponents = torch.linspace(-4, 4, num_features // 2, device=logsnr.device, dtype=logsnr.dtype)
    angles = logsnr[:, None] * torch.exp2(exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def place_code(side: int, dim: int) -> Float[Tensor, "n d"]:
    """(side², dim) codes of the places of a square grid, row by row: cosines and sines of x and y in [0, 1].

    A quarter of dim frequencies, from half a period to 8 periods per picture, geometrically spaced [C]. The product of two codes
    falls with the distance of their places, whatever the grids, so a query finds the tokens of its own place from the start.
    """
    middles = (torch.arange(side, device="cpu") + 0.5) / side  # whatever the default device is
    angles = math.pi * middles[:, None] * torch.exp2(torch.linspace(0, 4, dim // 4, device="cpu"))
    axis = torch.cat([angles.cos(), angles.sin()], dim=1)
    rows, columns = axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


@dataclass(frozen=True)
class KeyGrid:
    """What a picture attends to: for each of `num` images `before` tokens without a place and a grid of side² tokens, then `after`
    more tokens without a place.
    """

    side: int
    num: int
    before: int
    after: int


class Places(nn.Module):
    """The codes of queries (side², dim) and of keys (K, dim), zero for keys without a place. They follow from the shape of the
    network, so no file holds them: `fill` again after the memory of the network was made anew.
    """

    queries: Tensor
    keys: Tensor

    def __init__(self, side: int, grid: KeyGrid, dim: int) -> None:
        super().__init__()
        self.side, self.grid, self.dim = side, grid, dim
        num_keys = grid.num * (grid.before + grid.side**2) + grid.after
        self.register_buffer("queries", torch.empty(side**2, dim), persistent=False)
        self.register_buffer("keys", torch.empty(num_keys, dim), persistent=False)
        self.fill()

    @torch.no_grad()
    def fill(self) -> None:
        """Compute the codes, unless there is no memory for them."""
        if self.queries.is_meta:
            return
        image = F.pad(place_code(self.grid.side, self.dim), (0, 0, self.grid.before, 0))
        self.queries.copy_(place_code(self.side, self.dim))
        self.keys.copy_(F.pad(image.repeat(self.grid.num, 1), (0, 0, 0, self.grid.after)))


class NoiseEmbedding(nn.Module):
    """logsnr (B,) -> (B, dim): Fourier features, then a dense layer, SiLU, a dense layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.dense_in = nn.Linear(dim, dim)
        self.dense_out = nn.Linear(dim, dim)

    def forward(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, "b e"]:
        # Angles up to 240 radians need float32; only the features are as coarse as the weights.
        features = fourier_features(logsnr, self.dim).to(self.dense_in.weight.dtype)
        out: Tensor = self.dense_out(F.silu(self.dense_in(features)))
        return out


class Film(nn.Module):
    """h (1 + scale) + shift with scale, shift dense in the embedding (Perez 2018)."""

    def __init__(self, embedding_dim: int, channels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(embedding_dim, 2 * channels)

    def forward(self, h: Float[Tensor, "b ..."], embedding: Embedding) -> Float[Tensor, "b ..."]:
        """h is (B, C, H, W) or (B, N, C)."""
        scale, shift = self.dense(embedding).chunk(2, dim=1)
        if h.ndim == 4:
            return torch.addcmul(shift[:, :, None, None], h, 1 + scale[:, :, None, None])
        return torch.addcmul(shift[:, None], h, 1 + scale[:, None])


class MergeSkip(nn.Module):
    """(norm(x) + norm(skip)) / √2: skips are added, not concatenated, and the sum keeps unit variance (Hoogeboom 2023)."""

    def __init__(self, norm_x: nn.Module, norm_skip: nn.Module) -> None:
        super().__init__()
        self.norm_x = norm_x
        self.norm_skip = norm_skip

    def forward(self, h: Float[Tensor, "b ..."], skip: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        merged: Tensor = (self.norm_x(h) + self.norm_skip(skip)) * math.sqrt(0.5)
        return merged


class ConvBlock(nn.Module):
    """norm, SiLU, 3×3, norm, FiLM, SiLU, dropout, zero-initialised 3×3, residual. The norms are GroupNorm [C]."""

    def __init__(self, channels: int, embedding_dim: int, norm_groups: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(norm_groups, channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        # No affine of its own: FiLM supplies it.
        self.norm_out = nn.GroupNorm(norm_groups, channels, affine=False)
        self.film = Film(embedding_dim, channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, h: Maps, embedding: Embedding, context: Context | KeysValues | None) -> Maps:
        branch = self.conv_in(F.silu(self.norm_in(h)))
        branch = F.silu(self.film(self.norm_out(branch), embedding))
        out: Tensor = h + self.conv_out(self.dropout(branch))
        return out


class HeadNorm(nn.RMSNorm):
    """RMSNorm in the dtype of what it is given: under autocast the gain is float32, for which there is no fused kernel."""

    def forward(self, x: Float[Tensor, "b n heads dim"]) -> Float[Tensor, "b n heads dim"]:
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Multi-head attention from a normalised sequence to itself (context None) or to a context, with QK-norm.

    Queries and keys of each head are RMS-normalised with a learned gain, which bounds the logits (Dehghani 2023; RMS rather than
    LayerNorm is [C]). places: codes that are then added to both.
    """

    def __init__(self, channels: int, context_dim: int, head_dim: int, places: Places | None = None) -> None:
        super().__init__()
        self.head_dim, self.places = head_dim, places
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key_value = nn.Linear(context_dim, 2 * channels, bias=False)
        self.norm_query = HeadNorm(head_dim, eps=1e-6)
        self.norm_key = HeadNorm(head_dim, eps=1e-6)
        self.out = zero(nn.Linear(channels, channels))

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], -1, self.head_dim)

    def keys_values(self, context: Context) -> KeysValues:
        """What this layer attends to; the same for every picture that is drawn from one context."""
        key, value = (self._heads(x) for x in self.key_value(context).chunk(2, dim=-1))
        key = self.norm_key(key).transpose(1, 2)
        return key if self.places is None else key + self.places.keys.to(key.dtype), value.transpose(1, 2)

    def forward(self, h: Sequence, context: Context | KeysValues | None) -> Sequence:
        """What to add to h."""
        h = self.norm(h)
        query = self.norm_query(self._heads(self.query(h))).transpose(1, 2)  # normalised while it is contiguous
        if self.places is not None:
            query = query + self.places.queries.to(query.dtype)
        key, value = context if isinstance(context, tuple) else self.keys_values(h if context is None else context)
        attended = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, MLP with FiLM on its hidden layer; each pre-norm (LayerNorm [C]), residual.

    context_dim None builds a block without cross-attention. Dropout stands on the hidden layer, as in the convolution block.
    """

    def __init__(
        self,
        channels: int,
        embedding_dim: int,
        context_dim: int | None,
        head_dim: int,
        mlp_ratio: int,
        dropout: float,
        places: Places | None = None,
    ) -> None:
        super().__init__()
        hidden = mlp_ratio * channels
        self.self_attention = Attention(channels, channels, head_dim)
        self.cross_attention = None if context_dim is None else Attention(channels, context_dim, head_dim, places)
        self.norm = nn.LayerNorm(channels)
        self.dense_in = nn.Linear(channels, hidden)
        self.film = Film(embedding_dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.dense_out = zero(nn.Linear(hidden, channels))

    def forward(self, h: Sequence, embedding: Embedding, context: Context | KeysValues | None) -> Sequence:
        h = h + self.self_attention(h, None)
        if self.cross_attention is not None:
            h = h + self.cross_attention(h, context)
        hidden = self.film(F.silu(self.dense_in(self.norm(h))), embedding)
        out: Tensor = h + self.dense_out(self.dropout(hidden))
        return out
