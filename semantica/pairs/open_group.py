"""One row group in memory, as the loader keeps it: which pictures may be targets, with which partners, and their data.

In: the row group's tables of encodings and scores, and the selection. Out: pixels and tokens of its pictures as tensors. Pictures
are decoded when they are first used and kept, so that a small corpus is decoded once.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float16, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from semantica.data.schemas import token_rows
from semantica.errors import DataError
from semantica.pairs.scores import pooled_rows, square
from semantica.pairs.selection import Selection, score_rows


def to_unit(pixels: UInt8[Tensor, "... 3 h w"], out: Float[Tensor, "... 3 h w"] | None = None) -> Float[Tensor, "... 3 h w"]:
    """uint8 [0, 255] as float32 [-1, 1]; in `out` when given."""
    unit = pixels.float() if out is None else out.copy_(pixels)
    return unit.div_(127.5).sub_(1)  # in place: new memory costs more than the arithmetic


def decode_at(data: bytes, resolution_px: int) -> UInt8[Tensor, "3 h w"]:
    """The RGB pixels of a stored square picture at resolution_px (area-averaged when it is stored larger)."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        image.load()
        rgb = image if image.mode == "RGB" else image.convert("RGB")  # which copies
        if rgb.size != (resolution_px, resolution_px):
            if min(rgb.size) < resolution_px:
                raise DataError(
                    f"pairs: target must be at least {resolution_px} px, got {rgb.size[0]}x{rgb.size[1]}; ingest larger"
                )
            rgb = rgb.resize((resolution_px, resolution_px), Image.Resampling.BOX)
        # Line by line the reds, the greens, the blues: Pillow takes the channels apart faster than a strided copy does.
        lines = np.frombuffer(bytearray(rgb.tobytes("raw", "RGB;L")), np.uint8).reshape(resolution_px, 3, resolution_px)
    return torch.from_numpy(lines).permute(1, 0, 2)


class OpenGroup:
    """The pictures of one row group. `num_bytes` of memory grow with what is decoded and computed."""

    def __init__(self, table: pa.Table, scores: pa.Table, selection: Selection, shape: tuple[int, int], resolution_px: int) -> None:
        self.images = table["images"].to_pylist()
        self.pooled = pooled_rows(table["pooled"])
        self._stored: list[Float16[Tensor, "m n d"]] | None = None
        if "tokens" in table.column_names:
            # DLPack: torch takes the memory as it is, which NumPy says is not to be written to, and nobody writes to it.
            flat = [from_dlpack(pa.array(tokens.reshape(-1))) for tokens in token_rows(table["tokens"])]
            self._stored = [values.view(-1, *shape) for values in flat]
        self._computed: dict[tuple[int, int], Tensor] = {}  # float16, as stored ones are held
        self.resolution_px = resolution_px
        self.scores = [square(upper, n) for n, upper in score_rows(scores, selection.band.score)]
        self.partners = [selection.band.holds(matrix) for matrix in self.scores]
        self.targets = [(row, int(t)) for row, allowed in enumerate(self.partners) for t in np.flatnonzero(allowed.any(1))]
        self._pixels: dict[tuple[int, int], Tensor] = {}
        self.num_bytes = sum(len(image["bytes"]) for row in self.images for image in row)
        self.num_bytes += sum(
            array.nbytes for held in (self.pooled, self._stored or [], self.scores, self.partners) for array in held
        )

    def pixels(self, row: int, image: int) -> UInt8[Tensor, "3 h w"]:
        """The pixels of a picture, decoded now when none are kept. Several threads may ask at once."""
        kept = self._pixels.get((row, image))
        return decode_at(self.images[row][image]["bytes"], self.resolution_px) if kept is None else kept

    def keep_pixels(self, row: int, image: int, pixels: UInt8[Tensor, "3 h w"]) -> None:
        """Keep the pixels of a picture for as long as the row group is open."""
        if (row, image) not in self._pixels:
            self._pixels[row, image] = pixels
            self.num_bytes += pixels.nbytes

    def lacks_tokens(self, row: int, image: int) -> bool:
        """Whether the tokens of a picture are neither stored nor computed."""
        return self._stored is None and (row, image) not in self._computed

    def keep_tokens(self, row: int, image: int, tokens: Float[Tensor, "n d"]) -> None:
        """Keep computed tokens of a picture for as long as the row group is open."""
        self._computed[row, image] = tokens.half()
        self.num_bytes += self._computed[row, image].nbytes

    def tokens(self, row: int, image: int) -> Float16[Tensor, "n d"]:
        """The tokens of a picture, stored or computed."""
        return self._computed[row, image] if self._stored is None else self._stored[row][image]
