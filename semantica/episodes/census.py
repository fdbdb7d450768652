"""Statistics of all pages that ingest needs before the first page, in a fixed amount of memory for any number of pictures.

In: the ids of the pictures of each page, and the page's side of the split. Out: answers to two questions of the workers: is this
picture on more pages than a limit (furniture), and is it on a training page? The first is a count-min sketch (Cormode &
Muthukrishnan 2005), the second a partitioned Bloom filter. Both use the bits of the id, which is a SHA-256 and needs no further
hash. They err on one side only: a count is never too small, and no training picture is missed. With at least 16 bytes per distinct
picture, the share of pictures refused by error is below 1e-5. Sketches of disjoint sets of pages may be added in any order.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8, UInt64

_ROWS = 4  # a 16-byte id is four independent 32-bit hashes
_SATURATED = np.iinfo(np.uint16).max
BYTES_PER_PICTURE = 16  # of the census, half for counts, half for the filter: errors below 1e-5


@dataclass(frozen=True)
class PageIds:
    """The distinct pictures of some pages: one 16-byte id per (page, picture), and whether the page is held out."""

    num_pages: int
    ids: UInt8[np.ndarray, "n 16"]
    held_out: Bool[np.ndarray, " n"]

    @classmethod
    def of(cls, pages: Iterable[tuple[bool, Sequence[str]]]) -> PageIds:
        """From (is the page held out, ids of its pictures as 32 hex digits) of every page."""
        num_pages, ids, sides = 0, [], []
        for held_out, names in pages:
            num_pages += 1
            distinct = sorted(set(names))
            ids += [bytes.fromhex(name) for name in distinct]
            sides += [held_out] * len(distinct)
        flat = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 16)
        return cls(num_pages, flat, np.array(sides, bool))

    def to_bytes(self) -> bytes:
        """A file that `from_bytes` reads."""
        stream = io.BytesIO()
        np.savez(stream, num_pages=self.num_pages, ids=self.ids, held_out=self.held_out)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> PageIds:
        """What `to_bytes` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as values:
            return cls(int(values["num_pages"]), values["ids"], values["held_out"])


class Census:
    """The number of pages that show a picture, and whether a training page shows it, over all pages added so far."""

    def __init__(self, megabytes: int) -> None:
        half = megabytes * 2**20 // 2
        self.num_pages = 0
        self.num_entries = 0  # (page, picture) pairs
        self._counts = np.zeros((_ROWS, half // (2 * _ROWS)), np.uint16)
        self._filter = np.zeros((_ROWS, half // _ROWS), np.uint8)  # 8 bits per byte

    def add(self, pages: PageIds) -> None:
        """Add the pictures of more pages."""
        self.num_pages += pages.num_pages
        self.num_entries += len(pages.ids)
        for row, places in enumerate(self._places(pages.ids, self._counts.shape[1])):
            where, times = np.unique(places, return_counts=True)
            self._counts[row, where] = np.minimum(self._counts[row, where].astype(np.int64) + times, _SATURATED)
        train = pages.ids[~pages.held_out]
        for row, bits in enumerate(self._places(train, self._filter.shape[1] * 8)):
            np.bitwise_or.at(self._filter[row], bits >> np.uint64(3), (np.uint64(1) << (bits & np.uint64(7))).astype(np.uint8))

    def is_furniture(self, image_id: str, limit: float | int) -> bool:
        """True when the picture is on more than `limit` pages (a count above 65,535 is taken as 65,535)."""
        places = self._places(np.frombuffer(bytes.fromhex(image_id), np.uint8)[None], self._counts.shape[1])
        count = min(int(self._counts[row, place[0]]) for row, place in enumerate(places))
        return count > min(limit, _SATURATED - 1)

    def in_training(self, image_id: str) -> bool:
        """True when a training page shows the picture."""
        places = self._places(np.frombuffer(bytes.fromhex(image_id), np.uint8)[None], self._filter.shape[1] * 8)
        return all(int(self._filter[row, int(bit[0]) >> 3]) >> (int(bit[0]) & 7) & 1 for row, bit in enumerate(places))

    @property
    def megabytes_wanted(self) -> int:
        """The size that the census needs for its pictures. With a smaller size, more pictures are refused by error."""
        return -(-self.num_entries * BYTES_PER_PICTURE // 2**20)

    @property
    def megabytes(self) -> int:
        """The size of the census."""
        return (self._counts.nbytes + self._filter.nbytes) // 2**20

    def to_bytes(self) -> bytes:
        """A file that `from_bytes` reads; it is compressed, so empty cells take almost no bytes."""
        stream = io.BytesIO()
        np.savez_compressed(stream, sizes=[self.num_pages, self.num_entries], counts=self._counts, filter=self._filter)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Census:
        """What `to_bytes` wrote."""
        census = cls(0)
        with np.load(io.BytesIO(data), allow_pickle=False) as values:
            census.num_pages, census.num_entries = map(int, values["sizes"])
            census._counts, census._filter = values["counts"], values["filter"]
        return census

    @staticmethod
    def _places(ids: UInt8[np.ndarray, "n 16"], width: int) -> list[UInt64[np.ndarray, " n"]]:
        """For each row of `width` cells, the cell of each id."""
        hashes = np.ascontiguousarray(ids).view(np.uint32).reshape(-1, _ROWS).astype(np.uint64)
        # Multiply and shift instead of a remainder: equally even for any width up to 2**32 (a census of 32 TB).
        return [(hashes[:, row] * np.uint64(width)) >> np.uint64(32) for row in range(_ROWS)]
