"""What the denoiser is told about the wanted picture: a set of signals, each of which a picture may have or lack.

`images` are the encoder's view of one or several conditioning images, `similarity` is how similar the picture shall be to them;
every other signal is declared as a `Signal`. The loader makes a `Conditioning` of the signals of a batch, and it passes through
dropout, guidance and the device copies as one object: each of these is written once, over all signals. What a signal means to the
network, and what stands in where it is absent (the learned null), is `denoiser/signals.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semantica.conditioning.signals import IMAGES, SIMILARITY, Signal
from semantica.errors import DataError


@dataclass(frozen=True)
class SignalValues:
    """One signal of B pictures: one or several tensors (B, ...) by name, and where it is present: (B,), or (B, K) for K images.

    Where it is absent, the network must ignore what the tensors hold. is_guided: whether null conditioning is without it.
    """

    tensors: Mapping[str, Tensor]
    present: Bool[Tensor, "*rows"]
    is_guided: bool = True

    @classmethod
    def of(cls, signal: Signal, values: Tensor) -> SignalValues:
        """A declared signal of B pictures that all have it."""
        return cls({signal.name: values}, torch.ones(len(values), dtype=torch.bool, device=values.device), signal.is_guided)

    @classmethod
    def absent(cls, signal: Signal, rows: int, resolution_px: int, device: torch.device) -> SignalValues:
        """A declared signal of `rows` pictures that all lack it."""
        return cls.of(signal, torch.zeros(rows, *signal.shape(resolution_px), device=device)).dropped()

    @classmethod
    def constant(cls, signal: Signal, numbers: Sequence[float] | None, rows: int, resolution_px: int) -> SignalValues:
        """A declared signal of `rows` pictures that all have the same value: one number throughout, or all numbers in order.

        None: they all lack it.
        """
        if numbers is None:
            return cls.absent(signal, rows, resolution_px, torch.device("cpu"))
        shape = signal.shape(resolution_px)
        value = torch.tensor(numbers, dtype=torch.float32)
        value = value.expand(shape) if len(numbers) == 1 else value.view(shape)
        return cls.of(signal, value.expand(rows, *shape).contiguous())

    def map(self, function: Callable[[Tensor], Tensor]) -> SignalValues:
        """The same with `function` of every tensor."""
        return replace(self, tensors={name: function(t) for name, t in self.tensors.items()}, present=function(self.present))

    @property
    def is_present(self) -> Bool[Tensor, " b"]:
        """True where a picture has it, or one of its K."""
        return self.present.flatten(1).any(1) if self.present.ndim > 1 else self.present

    def dropped(self, mask: Bool[Tensor, " b"] | None = None) -> SignalValues:
        """Absent where `mask`; everywhere without one."""
        if mask is None:
            return replace(self, present=torch.zeros_like(self.present))
        return replace(self, present=self.present & ~mask.view(-1, *[1] * (self.present.ndim - 1)))


@dataclass(frozen=True)
class Conditioning:
    """Everything that B pictures are conditioned on: the signals by name. Every operation is over all of them."""

    signals: Mapping[str, SignalValues]

    @classmethod
    def of(
        cls,
        tokens: Float[Tensor, "b n d"] | Float[Tensor, "b k n d"],
        pooled: Float[Tensor, "b p"] | Float[Tensor, "b k p"],
        similarity: Float[Tensor, " b"] | None = None,
        present: Bool[Tensor, "b k"] | None = None,
    ) -> Conditioning:
        """Conditioning on images, one per row (B, N, D) or K per row (B, K, N, D), and on a similarity, NaN where none is wanted.

        present: which of the K images there are; None is all of them.
        """
        if tokens.ndim == 3:
            tokens, pooled = tokens[:, None], pooled[:, None]
        if present is None:
            present = torch.ones(pooled.shape[:2], dtype=torch.bool, device=pooled.device)
        signals = {IMAGES: SignalValues({"tokens": tokens, "pooled": pooled}, present)}
        cond = cls(signals)
        return cond if similarity is None else cond.told(SIMILARITY, similarity)

    @classmethod
    def cat(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """The rows of all parts, which have the same signals of the same shapes."""
        if any(part.signals.keys() != parts[0].signals.keys() for part in parts):
            names = " and ".join(str(sorted(part.signals)) for part in parts)
            raise DataError(f"conditioning: expected the same signals in all parts, got {names}")
        joined = {}
        for name, first in parts[0].signals.items():
            of_parts = [part.signals[name] for part in parts]
            tensors = {key: torch.cat([values.tensors[key] for values in of_parts]) for key in first.tensors}
            joined[name] = replace(first, tensors=tensors, present=torch.cat([values.present for values in of_parts]))
        return cls(joined)

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same with `function` of every tensor."""
        return Conditioning({name: values.map(function) for name, values in self.signals.items()})

    def told(self, name: str, values: SignalValues | Float[Tensor, " b"]) -> Conditioning:
        """The same with one more signal, or another value of it. A tensor of numbers is absent where it is NaN."""
        if isinstance(values, Tensor):
            values = SignalValues({name: values}, ~values.isnan())
        return Conditioning({**self.signals, name: values})

    def has(self, name: str) -> Bool[Tensor, " b"]:
        """True where a row has the signal."""
        return self.signals[name].is_present if name in self.signals else torch.zeros_like(self.is_null)

    def null(self) -> Conditioning:
        """The same rows without the signals that guidance strengthens."""
        return Conditioning({name: v.dropped() if v.is_guided else v for name, v in self.signals.items()})

    def dropped(self, masks: Mapping[str, Bool[Tensor, " b"]]) -> Conditioning:
        """Without the named signals where their masks are True: dropout."""
        return Conditioning({name: v.dropped(masks[name]) if name in masks else v for name, v in self.signals.items()})

    def and_null(self) -> Conditioning:
        """2 B rows: these, then the same with null conditioning. Both branches of guidance in one batch."""
        return Conditioning.cat([self, self.null()])

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on `device`."""
        return self.map(lambda tensor: tensor.to(device))

    @property
    def tokens(self) -> Float[Tensor, "b k n d"]:
        """The tokens of the conditioning images."""
        return self.signals[IMAGES].tensors["tokens"]

    @property
    def pooled(self) -> Float[Tensor, "b k p"]:
        """The pooled embeddings of the conditioning images."""
        return self.signals[IMAGES].tensors["pooled"]

    @property
    def present(self) -> Bool[Tensor, "b k"]:
        """Which of the K conditioning images there are."""
        return self.signals[IMAGES].present

    @property
    def similarity(self) -> Float[Tensor, " b"]:
        """The wanted similarity to the images, NaN where none is wanted."""
        nothing = torch.full((len(self),), float("nan"), device=self.present.device)
        if SIMILARITY not in self.signals:
            return nothing
        values = self.signals[SIMILARITY]
        return torch.where(values.present, values.tensors[SIMILARITY], nothing.to(values.tensors[SIMILARITY].dtype))

    @property
    def is_null(self) -> Bool[Tensor, " b"]:
        """True where a row is conditioned on no image."""
        return ~self.signals[IMAGES].is_present

    def __len__(self) -> int:
        return len(self.present)

    def __getitem__(self, rows: slice | Tensor) -> Conditioning:
        return self.map(lambda tensor: tensor[rows])
