"""What the denoiser is told about the wanted picture: the encoder's view of one or several conditioning images, how similar the
picture shall be to them, or nothing (null).

Comes from the encoder (stored in encodings), goes into the denoiser and through every Denoise. Null conditioning is the learned
null inside the network; here it is only a mask, so that dropout, guidance and batching of both branches are one mechanism.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ANY_SIMILARITY = float("nan")
"""The similarity of rows that ask for none."""


@dataclass(frozen=True)
class Conditioning:
    """What each of B pictures is conditioned on: up to K images, and how similar to them it shall be.

    tokens (B, K, N, D) and pooled (B, K, P) of the images; present (B, K) is False where there is no such image and the network
    must ignore what stands there; similarity (B,) is the mean cosine to the images, NaN where none is asked for.
    """

    tokens: Float[Tensor, "b k n d"]
    pooled: Float[Tensor, "b k p"]
    present: Bool[Tensor, "b k"]
    similarity: Float[Tensor, " b"]

    @classmethod
    def of(
        cls,
        tokens: Float[Tensor, "b n d"] | Float[Tensor, "b k n d"],
        pooled: Float[Tensor, "b p"] | Float[Tensor, "b k p"],
        similarity: Float[Tensor, " b"] | None = None,
    ) -> Conditioning:
        """Conditioning on every image of every row: one a row (B, N, D), or K (B, K, N, D)."""
        if tokens.ndim == 3:
            tokens, pooled = tokens[:, None], pooled[:, None]
        present = torch.ones(pooled.shape[:2], dtype=torch.bool, device=pooled.device)
        if similarity is None:
            similarity = torch.full((len(pooled),), ANY_SIMILARITY, device=pooled.device)
        return cls(tokens, pooled, present, similarity)

    @classmethod
    def cat(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """The rows of all parts, which have the same K, N, D and P."""
        tokens, pooled = torch.cat([p.tokens for p in parts]), torch.cat([p.pooled for p in parts])
        return cls(tokens, pooled, torch.cat([p.present for p in parts]), torch.cat([p.similarity for p in parts]))

    @property
    def is_null(self) -> Bool[Tensor, " b"]:
        """True where a row is conditioned on no image."""
        return ~self.present.any(1)

    @property
    def asks(self) -> Bool[Tensor, " b"]:
        """True where a row asks for a similarity."""
        return ~self.similarity.isnan()

    def null(self) -> Conditioning:
        """The same rows with null conditioning: no image, no similarity."""
        return self.dropped(torch.ones_like(self.is_null))

    def dropped(self, mask: Bool[Tensor, " b"]) -> Conditioning:
        """Null where `mask`: conditioning dropout."""
        return replace(self, present=self.present & ~mask[:, None]).of_any_similarity(mask)

    def of_any_similarity(self, mask: Bool[Tensor, " b"]) -> Conditioning:
        """Without a similarity where `mask`; the images stay."""
        return replace(self, similarity=torch.where(mask, ANY_SIMILARITY, self.similarity))

    def and_null(self) -> Conditioning:
        """2 B rows: these, then the same with null conditioning. Both branches of guidance in one batch."""
        return Conditioning.cat([self, self.null()])

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on `device`."""
        tokens, pooled = self.tokens.to(device), self.pooled.to(device)
        return Conditioning(tokens, pooled, self.present.to(device), self.similarity.to(device))

    def __len__(self) -> int:
        return len(self.present)

    def __getitem__(self, rows: slice | Tensor) -> Conditioning:
        return Conditioning(self.tokens[rows], self.pooled[rows], self.present[rows], self.similarity[rows])
