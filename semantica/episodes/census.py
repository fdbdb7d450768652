"""What must be known of all pages before any is ingested, in a fixed amount of memory however many pictures there are.

Comes in: the ids of the pictures of each page, and which side of the split the page is on. Goes out: two questions any worker can
ask: does this picture stand on more pages than a limit (furniture), and does a training page show it. Both are sketches over the
bits of the id, which is a SHA-256 and needs no further hash: a count-min sketch (Cormode & Muthukrishnan 2005) and a partitioned
Bloom filter. They err on one side only: a count is never too small, a training picture is never missed. With at least 16 bytes a
distinct picture the share of pictures refused by error is below 1e-5; sketches of disjoint sets of pages add up in any order.
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
    """The distinct pictures of some pages: for each (page, picture) the id, 16 bytes, and whether the page is held out."""

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
    """On how many pages a picture stands, and whether a training page shows it, of all pages added so far."""

    def __init__(self, megabytes: int) -> None:
        half = megabytes * 2**20 // 2
        self.num_pages = 0
        self.num_entries = 0  # (page, picture) pairs
        self._counts = np.zeros((_ROWS, half // (2 * _ROWS)), np.uint16)
        self._filter = np.zeros((_ROWS, half // _ROWS), np.uint8)  # 8 bits a byte

    def add(self, pages: PageIds) -> None:
        """Count the pictures of further pages."""
        self.num_pages += pages.num_pages
        self.num_entries += len(pages.ids)
        for row, places in enumerate(self._places(pages.ids, self._counts.shape[1])):
            where, times = np.unique(places, return_counts=True)
            self._counts[row, where] = np.minimum(self._counts[row, where].astype(np.int64) + times, _SATURATED)
        train = pages.ids[~pages.held_out]
        for row, bits in enumerate(self._places(train, self._filter.shape[1] * 8)):
            np.bitwise_or.at(self._filter[row], bits >> np.uint64(3), (np.uint64(1) << (bits & np.uint64(7))).astype(np.uint8))

    def is_furniture(self, image_id: str, limit: float | int) -> bool:
        """True when the picture stands on more than `limit` pages (a count above 65,535 is taken as 65,535)."""
        places = self._places(np.frombuffer(bytes.fromhex(image_id), np.uint8)[None], self._counts.shape[1])
        count = min(int(self._counts[row, place[0]]) for row, place in enumerate(places))
        return count > min(limit, _SATURATED - 1)

    def in_training(self, image_id: str) -> bool:
        """True when a training page shows the picture."""
        places = self._places(np.frombuffer(bytes.fromhex(image_id), np.uint8)[None], self._filter.shape[1] * 8)
        return all(int(self._filter[row, int(bit[0]) >> 3]) >> (int(bit[0]) & 7) & 1 for row, bit in enumerate(places))

    @property
    def megabytes_wanted(self) -> int:
        """What the census should have for the pictures it holds; more than it has means more pictures refused by error."""
        return -(-self.num_entries * BYTES_PER_PICTURE // 2**20)

    @property
    def megabytes(self) -> int:
        """What it has."""
        return (self._counts.nbytes + self._filter.nbytes) // 2**20

    def to_bytes(self) -> bytes:
        """A file that `from_bytes` reads; empty cells cost next to nothing."""
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
        """Where each id falls in each of the rows of `width` cells."""
        hashes = np.ascontiguousarray(ids).view(np.uint32).reshape(-1, _ROWS).astype(np.uint64)
        # Multiply and shift instead of a remainder: as even for any width, which is at most 2**32 (a census of 32 TB).
        return [(hashes[:, row] * np.uint64(width)) >> np.uint64(32) for row in range(_ROWS)]
