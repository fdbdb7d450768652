"""Tokens of stored pictures when they are needed, as `encode` would have stored them: the same values to the last bit.

In: a finished encodings dataset without tokens, whose manifest says which encoder made it. Out: a function from stored bytes to
tokens, for the training loader and for generation. Three things make the two modes agree: the encoder is checked against the
manifest's identity; every batch has the same shape, batch_size, filled up by repeating a picture, so that the same kernels run,
in which a picture's row does not depend on its place or its neighbours; and tokens are rounded to float16, as the file rounds them.
On another kind of device sums are ordered differently, and then the modes agree to rounding only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from semantica.config import from_dict
from semantica.data.dataset import Manifest
from semantica.encoders.encode import encode_pictures
from semantica.encoders.encoder import Encoder, EncoderIdentity, load_encoder
from semantica.encoders.settings import EncodeConfig


class TokensOnTheFly:
    """`tokens(pictures)`: (M, N, D) float32 for M stored pictures. The encoder is loaded when it is first asked.

    weights: where it is, when no longer where the encodings were made with it.
    """

    def __init__(self, encodings: Manifest, device: str = "cpu", weights: str = "") -> None:
        self.settings = from_dict(EncodeConfig, dict(encodings.config))
        if weights:
            self.settings = replace(self.settings, encoder=replace(self.settings.encoder, weights=weights))
        self.identity = EncoderIdentity.from_dict(encodings.facts["encoder"])
        self.device = device
        self._encoder: Encoder | None = None

    def __call__(self, pictures: Sequence[bytes]) -> Float[Tensor, "m n d"]:
        """The tokens of the pictures, rounded as the file rounds them."""
        if self._encoder is None:
            self._encoder = load_encoder(self.settings.encoder, self.device, expected=self.identity)
        encoded = encode_pictures(pictures, self._encoder, self.settings.batch_size)
        # By way of numpy: what an inference-mode encoder returns may not take part in training.
        return torch.from_numpy(encoded.tokens.numpy().astype(np.float16).astype(np.float32))


def tokens_on_the_fly(encodings: Manifest, device: str = "cpu", weights: str = "") -> TokensOnTheFly | None:
    """What computes the tokens of these encodings, or None when they are stored."""
    return None if encodings.config["store_tokens"] else TokensOnTheFly(encodings, device, weights)
