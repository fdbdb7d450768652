"""Near-duplicates: pictures that repeat another picture of the same page and so add nothing to an episode.

In: the decoded pictures of a page. Out: for each, the earlier picture that it repeats, if any. Pictures that a site repeats on many
pages are found by the census (`census.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import imagehash
import numpy as np
from jaxtyping import Int16, UInt64
from PIL import Image

_CELLS = 16  # side of the thumbnail in which colours are compared


def image_id(data: bytes) -> str:
    """The name of a picture: the first 32 hex digits of the SHA-256 of its original bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


@dataclass(frozen=True)
class Signature:
    """The features by which two pictures are compared: the signs of 64 brightness gradients and the colours of 16x16 cells."""

    gradients: np.uint64
    cells: Int16[np.ndarray, "16 16 3"]


def signature(picture: Image.Image) -> Signature:
    """The signature of a normalised RGB picture."""
    gradients = np.packbits(imagehash.dhash(picture, hash_size=8).hash).view(np.uint64)[0]
    cells = np.asarray(picture.resize((_CELLS, _CELLS), Image.Resampling.BOX)).astype(np.int16)
    return Signature(gradients, cells)


@dataclass
class NearDuplicates:
    """The kept pictures of one page, with which further pictures are compared.

    Two pictures are near-duplicates when their difference hashes differ in at most `max_bits` of 64 AND no cell of their 16x16
    thumbnails differs by more than `max_levels` of 255 in any channel. The hash alone is not enough, since it holds only the signs
    of gradients. On the flat background of clip art most gradients are zero: two clock faces with different hands, or a red and a
    blue key, have the same hash.
    """

    max_bits: int
    max_levels: int
    _kept: list[tuple[str, Signature]] = field(default_factory=list)
    _gradients: UInt64[np.ndarray, " kept"] = field(default_factory=lambda: np.empty(0, np.uint64))

    def original_of(self, new: Signature) -> str | None:
        """The name of the first kept picture that `new` nearly repeats, or None."""
        for index in np.flatnonzero(np.bitwise_count(self._gradients ^ new.gradients) <= self.max_bits):
            name, kept = self._kept[index]
            if np.abs(kept.cells - new.cells).max() <= self.max_levels:
                return name
        return None

    def keep(self, name: str, new: Signature) -> None:
        """Add a picture with which later pictures are compared."""
        self._kept.append((name, new))
        self._gradients = np.append(self._gradients, new.gradients)
