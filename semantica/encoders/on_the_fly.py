"""Tokens of stored pictures, computed when they are needed: the same values, to the last bit, that `encode` would have stored.

In: a finished encodings dataset without tokens, whose manifest names its encoder. Out: a function from stored bytes to tokens, for
the training loader and for generation. Three measures make the two modes agree:
- The encoder is checked against the identity in the manifest.
- Every batch has the same shape, batch_size, filled up by repeating a picture. So the same kernels run, and in these a picture's
  row depends neither on its place nor on its neighbours.
- Tokens are rounded to float16, as in the file.
Another kind of device adds in another order; then the two modes agree up to rounding.
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
    """`tokens(pictures)`: (M, N, D) float32 for M stored pictures. The encoder is loaded on the first call.

    weights: the encoder's weights, when they are no longer where the encodings' manifest says.
    """

    def __init__(self, encodings: Manifest, device: str = "cpu", weights: str = "") -> None:
        self.settings = from_dict(EncodeConfig, dict(encodings.config))
        if weights:
            self.settings = replace(self.settings, encoder=replace(self.settings.encoder, weights=weights))
        self.identity = EncoderIdentity.from_dict(encodings.facts["encoder"])
        self.device = device
        self._encoder: Encoder | None = None

    def __call__(self, pictures: Sequence[bytes]) -> Float[Tensor, "m n d"]:
        """The tokens of the pictures, rounded to float16 as in the file."""
        if self._encoder is None:
            self._encoder = load_encoder(self.settings.encoder, self.device, expected=self.identity)
        encoded = encode_pictures(pictures, self._encoder, self.settings.batch_size)
        # Through numpy: autograd does not accept the inference-mode tensors of the encoder.
        return torch.from_numpy(encoded.tokens.numpy().astype(np.float16).astype(np.float32))


def tokens_on_the_fly(encodings: Manifest, device: str = "cpu", weights: str = "") -> TokensOnTheFly | None:
    """The function that computes the tokens of these encodings, or None when tokens are stored."""
    return None if encodings.config["store_tokens"] else TokensOnTheFly(encodings, device, weights)
