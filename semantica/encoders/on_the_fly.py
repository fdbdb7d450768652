"""Tokens of stored pictures when they are needed, as `encode` would have stored them: the same values to the last bit.

In: a finished encodings dataset without tokens, whose manifest says which encoder made it. Out: a function from stored bytes to
tokens, for the training loader and for generation. Three things make the two modes agree: the encoder is checked against the
manifest's identity; every batch has the same shape, batch_size, filled up by repeating a picture, so that the same kernels run,
in which a picture's row does not depend on its place or its neighbours; and tokens are rounded to float16, as the file rounds them.
On another kind of device sums are ordered differently, and then the modes agree to rounding only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from semantica.config import from_dict
from semantica.datasets import Manifest
from semantica.encoders.encode import EncodeConfig, encode_pictures
from semantica.encoders.encoder import Encoder, EncoderIdentity, load_encoder
from semantica.errors import DataError


class TokensOnTheFly:
    """`tokens(pictures)`: (M, N, D) float32 for M stored pictures. The encoder is loaded when it is first asked."""

    def __init__(self, encodings: Manifest, device: str = "cpu") -> None:
        self.settings = from_dict(EncodeConfig, dict(encodings.config))
        self.identity = EncoderIdentity.from_dict(encodings.facts["encoder"])
        self.device = device
        self._encoder: Encoder | None = None

    def __call__(self, pictures: Sequence[bytes]) -> Float[Tensor, "m n d"]:
        """The tokens of the pictures, rounded as the file rounds them."""
        if self._encoder is None:
            self._encoder = self._load()
        encoded = encode_pictures(pictures, self._encoder, self.settings.batch_size)
        # By way of numpy: what an inference-mode encoder returns may not take part in training.
        return torch.from_numpy(encoded.tokens.numpy().astype(np.float16).astype(np.float32))

    def _load(self) -> Encoder:
        encoder = load_encoder(self.settings.encoder, self.device)
        found, expected = encoder.identity.to_dict(), self.identity.to_dict()
        differing = [name for name in expected if found[name] != expected[name]]
        if differing:
            name = differing[0]
            raise DataError(
                f"encoder: {self.settings.encoder.weights!r} is no longer what made the encodings: {name} was "
                f"{expected[name]}, now {found[name]}; encode again, or put the old weights back"
            )
        return encoder


def tokens_on_the_fly(encodings: Manifest, device: str = "cpu") -> TokensOnTheFly | None:
    """What computes the tokens of these encodings, or None when they are stored."""
    return None if encodings.config["store_tokens"] else TokensOnTheFly(encodings, device)
