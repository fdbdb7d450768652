"""The declaration of a signal: one thing that the denoiser is told about the wanted picture.

Two signals always exist: `images`, the encoder's view of the conditioning images, and `similarity`, how similar to them the picture
shall be; DenoiserConfig says whether and how the network takes them. Every other one is a `Signal` in `DenoiserConfig.signals`. The
declaration is all that batches, dropout, guidance, plans and releases need; beside it a signal needs a source of its values for
training (`pairs.loader.source`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from semantica.config import config, require

IMAGES, SIMILARITY = "images", "similarity"

Enters: TypeAlias = Literal["tokens", "film", "channels"]
"""How a signal reaches the denoiser: as tokens of cross-attention, added to the noise embedding, or as channels beside z."""


@config
class Signal:
    """The declaration of one more signal. Its values are numbers: (num, dim) tokens, a vector (dim,), or `dim` maps of z's size.

    Tokens and vectors are dropped in training, together with the images or alone, and guidance strengthens them. Channels are never
    dropped unless `dropout` says so, and both branches of guidance get them.
    """

    name: str
    enters: Enters
    dim: int
    num: int = 1  # tokens; read where enters is "tokens"
    dropout: float = 0.0  # share of the examples that are trained without this signal alone
    weight: float = 0.0  # guidance weight of this signal alone; 0: it is guided together with the others, by w

    def __post_init__(self) -> None:
        proper = self.name.isidentifier() and self.name not in (IMAGES, SIMILARITY)
        require(proper, "name", f"letters, digits and _, and neither {IMAGES} nor {SIMILARITY}", self.name)
        for name in ("dim", "num"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(0 <= self.dropout < 1, "dropout", "in [0, 1)", self.dropout)
        require(self.weight >= 0, "weight", "0 or more", self.weight)

    @property
    def is_guided(self) -> bool:
        """Whether null conditioning is without it."""
        return self.enters != "channels"

    def shape(self, resolution_px: int) -> tuple[int, ...]:
        """The shape of one value."""
        if self.enters == "tokens":
            return self.num, self.dim
        return (self.dim,) if self.enters == "film" else (self.dim, resolution_px, resolution_px)


def constants_of(texts: Sequence[str], field: str = "signals") -> dict[str, tuple[float, ...] | None]:
    """The numbers per signal that a user gives all pictures by NAME=NUMBER,NUMBER,...; None for NAME=none: no picture has it.

    Raises FieldError, of this field, for other texts and for a name that is given twice.
    """
    constants: dict[str, tuple[float, ...] | None] = {}
    for text in texts:
        name, _, values = text.partition("=")
        try:
            numbers = None if values == "none" else tuple(float(value) for value in values.split(","))
        except ValueError:
            numbers = ()
        proper = name.isidentifier() and numbers != () and all(map(math.isfinite, numbers or ()))
        require(proper, field, "NAME=NUMBER, NAME=NUMBER,NUMBER,... or NAME=none", text)
        require(name not in constants, field, "one value per signal", list(texts))
        constants[name] = numbers
    return constants


def check_constants(texts: Sequence[str], signals: Sequence[Signal], resolution_px: int, owner: type) -> None:
    """Raise FieldError, of the field `signals` of `owner`, for a signal that is not declared and for a wrong count of numbers."""
    declared = {signal.name: signal for signal in signals}
    told = f"of the signals that this denoiser is told ({', '.join(declared) or 'none but images and similarity'})"
    for name, numbers in constants_of(texts).items():
        require(name in declared, "signals", told, name, of=owner)
        shape = declared[name].shape(resolution_px)
        fits = numbers is None or len(numbers) in (1, math.prod(shape))
        expected = f"one number or {math.prod(shape)} for {name}, whose shape is {shape}"
        require(fits, "signals", expected, len(numbers or ()), of=owner)
