"""A user's pictures -> their conditioning, as `encode` computes it, and the name that keys their samples' noise.

In: PIL pictures or paths, one or several for each wanted picture. A picture is prepared as ingest does: the same formats and limit
of pixels, upright, over white, in sRGB, its middle square. Where the release knows the side of the squares that ingest stored
(picture_px), the square is resized to that side, so that the encoder sees the detail it saw in training; where not, the encoder's
own resize takes the square as it is. Either way a stored picture comes through unchanged. Every picture is encoded alone and
rounded to float16, as encodings are, so that no conditioning depends on the other pictures of a call [C].
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from semantica.conditioning.values import Conditioning
from semantica.encoders.encode import encode_batch
from semantica.encoders.encoder import Encoder
from semantica.episodes import colour
from semantica.episodes.images import ImageConfig, decode
from semantica.episodes.quarantine import Refused
from semantica.errors import DataError

Picture: TypeAlias = Image.Image | str | Path
_ANY_SIDE_PX = 4096
_ANY_ASPECT = 1e9  # ingest's bounds on side and aspect choose what is worth training on; a user has chosen


def rows_of(images: object) -> tuple[list[list[object]], bool]:
    """(the conditioning images of each wanted picture, unread; whether `images` is one picture and not a list)."""
    if isinstance(images, (Image.Image, str, Path)):
        return [[images]], True
    if not isinstance(images, (list, tuple)):
        raise DataError(f"images: expected a PIL picture, a path, or a list of these, got {type(images).__name__}")
    return [list(row) if isinstance(row, (list, tuple)) else [row] for row in images], False


@dataclass(frozen=True)
class ConditioningImages:
    """`conditioning(rows)`: the Conditioning of each row of 1 to max_images pictures, and its name: the hash of their pixels.

    The name keys the noise, not the place in a list [C]: a picture's samples are the same alone and among others, and two equal
    pictures have equal samples.
    """

    encoder: Encoder
    max_images: int
    picture_px: int | None = None

    def __call__(self, rows: Sequence[Sequence[object]]) -> tuple[Conditioning, list[str]]:
        """Raises DataError for an item that is no picture, and for a row without pictures or with too many."""
        for row in rows:
            if not 1 <= len(row) <= self.max_images:
                raise DataError(
                    f"images: this model takes 1 to {self.max_images} conditioning images for a picture, got {len(row)}"
                    + ("" if self.max_images > 1 else "; pass a flat list to draw from each of them")
                )
        squares = [[square_of(picture, self.picture_px) for picture in row] for row in rows]
        identity, shape = self.encoder.identity, (len(rows), max(map(len, rows), default=1))
        cond = Conditioning.of(
            torch.zeros(*shape, identity.num_tokens, identity.token_dim),
            torch.zeros(*shape, identity.pooled_dim),
            present=torch.zeros(shape, dtype=torch.bool),
        )
        for index, row in enumerate(squares):
            for place, square in enumerate(row):
                encoded = encode_batch([square], self.encoder, 1)
                cond.tokens[index, place] = encoded.tokens[0].half().float()  # as the file rounds them
                cond.pooled[index, place] = encoded.pooled[0].half().float()
                cond.present[index, place] = True
        return cond, [pixels_name(row) for row in squares]

    def null(self, num: int) -> Conditioning:
        """The Conditioning of `num` rows without a conditioning image."""
        identity = self.encoder.identity
        tokens, pooled = torch.zeros(num, 1, identity.num_tokens, identity.token_dim), torch.zeros(num, 1, identity.pooled_dim)
        return Conditioning.of(tokens, pooled, present=torch.zeros(num, 1, dtype=torch.bool))


def pixels_name(squares: Sequence[Tensor]) -> str:
    """The hash of the pixels of one or several pictures, which keys the noise of the samples that are drawn for them."""
    digest = hashlib.sha256()
    for square in squares:
        digest.update(f"{len(square[0])}/".encode())
        digest.update(square.numpy().tobytes())
    return digest.hexdigest()


def square_of(picture: object, picture_px: int | None) -> UInt8[Tensor, "3 s s"]:
    """The middle square of a picture in sRGB, of side picture_px or, where that is None, as large as it is.

    A path is read as ingest reads bytes, a large JPEG at a reduced scale when picture_px is known; an open PIL picture is taken in
    full. Raises DataError.
    """
    settings = ImageConfig(image_px=picture_px or _ANY_SIDE_PX, min_side_px=1, max_aspect=_ANY_ASPECT)
    what = f"{picture}" if isinstance(picture, (str, Path)) else "a PIL picture"
    try:
        if isinstance(picture, (str, Path)):
            decoded = decode(Path(picture).expanduser().read_bytes(), settings)
            upright, profile = decoded.picture, decoded.profile
        elif isinstance(picture, Image.Image):
            upright, profile = _upright(picture, settings.max_pixels), picture.info.get("icc_profile")
        else:
            raise DataError(f"images: expected a PIL picture or a path, got {type(picture).__name__}")
    except Refused as error:
        raise DataError(f"images: {what} is not a usable picture: {error}") from None
    except (OSError, SyntaxError) as error:
        raise DataError(f"images: {what} cannot be read ({error})") from None
    if picture_px is None:
        side = min(upright.size)
        left, top = (upright.width - side) // 2, (upright.height - side) // 2
        square = upright.crop((left, top, left + side, top + side))
    else:
        square = ImageOps.fit(upright, (picture_px, picture_px), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(colour.to_srgb(square, profile))).permute(2, 0, 1).contiguous()


def _upright(picture: Image.Image, max_pixels: int) -> Image.Image:
    if not 0 < picture.width * picture.height <= max_pixels:
        raise DataError(f"images: a PIL picture must have 1 to {max_pixels} pixels, got {picture.width}x{picture.height}")
    return colour.flatten(ImageOps.exif_transpose(picture))
