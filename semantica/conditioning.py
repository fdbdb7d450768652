"""What the denoiser is told about the wanted picture: the encoder's view of one conditioning image, or nothing (null).

Comes from the encoder (stored in encodings), goes into the denoiser and through every Denoise. Null conditioning is the learned
null inside the network; here it is only a mask, so that dropout, guidance and batching of both branches are one mechanism.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """tokens (B, N, D) and pooled (B, D) of the conditioning images; is_null (B,) is True where the network must ignore them."""

    tokens: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b p"]
    is_null: Bool[Tensor, " b"]

    @classmethod
    def of(cls, tokens: Float[Tensor, "b n d"], pooled: Float[Tensor, "b p"]) -> Conditioning:
        """Conditioning on every row."""
        return cls(tokens, pooled, torch.zeros(len(pooled), dtype=torch.bool, device=pooled.device))

    def null(self) -> Conditioning:
        """The same rows with null conditioning."""
        return replace(self, is_null=torch.ones_like(self.is_null))

    def dropped(self, mask: Bool[Tensor, " b"]) -> Conditioning:
        """Null where `mask`: conditioning dropout."""
        return replace(self, is_null=self.is_null | mask)

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on `device`."""
        return Conditioning(self.tokens.to(device), self.pooled.to(device), self.is_null.to(device))

    def __len__(self) -> int:
        return len(self.is_null)

    def __getitem__(self, rows: slice | Tensor) -> Conditioning:
        return Conditioning(self.tokens[rows], self.pooled[rows], self.is_null[rows])
