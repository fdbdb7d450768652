"""What enters every block besides the picture: the embedding of the noise level, and the conditioning image's tokens or pooled
embedding, or the learned null that stands in for them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semantica.conditioning import Conditioning
from semantica.denoiser.layers import LearnedVectors


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
    """cond.tokens -> the context of cross-attention, (B, K N, D): LayerNorm without affine (each block's key and value learn one).

    The tokens of K images stand side by side; when a network takes more than one, each image's tokens get the learned vector of
    its place [C]. Where there is no image, one learned null vector stands at every position: attention over equal keys is that
    vector's value whatever the weights, so a vector for each position would add N D parameters and a constant at most.
    """

    def __init__(self, token_dim: int, max_images: int) -> None:
        super().__init__()
        self.null = LearnedVectors(1, token_dim, std=1.0)  # as a normalised token is distributed
        self.place = LearnedVectors(max_images, token_dim, std=0.02) if max_images > 1 else None

    def forward(self, cond: Conditioning) -> Float[Tensor, "b n d"]:
        null = self.null()
        tokens = cond.tokens.to(null.dtype)
        context = torch.where(cond.present[:, :, None, None], F.layer_norm(tokens, tokens.shape[-1:]), null).to(null.dtype)
        if self.place is not None:
            context = context + self.place()[:, None]
        return context.flatten(1, 2)


class PooledEmbedding(nn.Module):
    """cond.pooled -> what is added to the noise embedding, (B, E): L2-normalised times √D, averaged over the images, then dense.

    The L2 norm keeps the directions, on which the encoder's cosines (and the band) are measured; √D makes entries of order 1.
    Null rows hold a learned vector in place of the average.
    """

    def __init__(self, pooled_dim: int, embedding_dim: int, max_images: int) -> None:
        super().__init__()
        self.null = LearnedVectors(1, pooled_dim, std=1.0)
        self.place = LearnedVectors(max_images, pooled_dim, std=0.02) if max_images > 1 else None
        self.dense = nn.Linear(pooled_dim, embedding_dim)

    def forward(self, cond: Conditioning) -> Float[Tensor, "b e"]:
        null = self.null()
        pooled = F.normalize(cond.pooled.to(null.dtype), dim=2) * math.sqrt(cond.pooled.shape[2])
        if self.place is not None:
            pooled = pooled + self.place()
        present = cond.present[:, :, None]
        mean = torch.where(present, pooled, 0).sum(1) / present.sum(1).clamp(min=1)
        out: Tensor = self.dense(torch.where(cond.is_null[:, None], null, mean).to(null.dtype))
        return out


class SimilarityEmbedding(nn.Module):
    """cond.similarity -> what is added to the noise embedding, (B, E): Fourier features, then a dense layer, SiLU, a dense layer.

    Periods from 25 down to 0.1 of cosine [C]. Rows that ask for no similarity hold a learned vector in place of the features.
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.dim = 64
        self.null = LearnedVectors(1, self.dim, std=math.sqrt(0.5))  # as cosines and sines are distributed
        self.dense_in = nn.Linear(self.dim, embedding_dim)
        self.dense_out = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, cond: Conditioning) -> Float[Tensor, "b e"]:
        null = self.null()
        asked = ~cond.similarity.isnan()
        features = fourier_features(4 * torch.where(asked, cond.similarity, 0.0), self.dim).to(null.dtype)
        out: Tensor = self.dense_out(F.silu(self.dense_in(torch.where(asked[:, None], features, null))))
        return out
