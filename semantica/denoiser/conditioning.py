"""What enters every block besides the picture: the embedding of the noise level, and the conditioning image's tokens or pooled
embedding, or the learned null that stands in for them.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semantica.conditioning import Conditioning
from semantica.denoiser.layers import LearnedVectors

ConditioningKind = Literal["cross_attention", "film", "both"]


def fourier_features(logsnr: Float[Tensor, " b"], num_features: int) -> Float[Tensor, "b f"]:
    """Cosines and sines of logsnr at frequencies from 1/16 to 16 radians a unit, geometrically spaced [C].

    Over [-15, 15] the slowest is monotone, so levels are told apart; the fastest resolves a tenth of a unit.
    """
    exponents = torch.linspace(-4, 4, num_features // 2, device=logsnr.device, dtype=logsnr.dtype)
    angles = logsnr[:, None] * torch.exp2(exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


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


class TokenContext(nn.Module):
    """cond.tokens -> the context of cross-attention, (B, N, D): LayerNorm without affine (each block's key and value learn one).

    Null rows hold one learned vector at every position: attention over equal keys is that vector's value whatever the weights,
    so a vector for each position would add N D parameters and a constant at most.
    """

    def __init__(self, token_dim: int) -> None:
        super().__init__()
        self.null = LearnedVectors(1, token_dim, std=1.0)  # as a normalised token is distributed

    def forward(self, cond: Conditioning) -> Float[Tensor, "b n d"]:
        null = self.null()
        tokens = cond.tokens.to(null.dtype)
        return torch.where(cond.is_null[:, None, None], null, F.layer_norm(tokens, tokens.shape[-1:])).to(null.dtype)


class PooledEmbedding(nn.Module):
    """cond.pooled -> what is added to the noise embedding, (B, E): L2-normalised times √D, then dense.

    The L2 norm keeps the directions, on which the encoder's cosines (and the band) are measured; √D makes entries of order 1.
    Null rows hold a learned vector in place of the normalised one.
    """

    def __init__(self, pooled_dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.null = LearnedVectors(1, pooled_dim, std=1.0)
        self.dense = nn.Linear(pooled_dim, embedding_dim)

    def forward(self, cond: Conditioning) -> Float[Tensor, "b e"]:
        null = self.null()
        pooled = F.normalize(cond.pooled.to(null.dtype), dim=1) * math.sqrt(cond.pooled.shape[1])
        out: Tensor = self.dense(torch.where(cond.is_null[:, None], null, pooled))
        return out
