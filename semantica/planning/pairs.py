"""How many pairs a band will leave, from the scores of a sample of the pages, and how sure that is.

In: a finished scores dataset of some pages (`semantica pairs` on a sample), a band, and how many pictures the whole corpus has.
Out: the number expected of the whole, with a standard error: pairs, and target pictures, which are what an epoch draws.

A ratio estimate (Cochran 1977, chapter 6): pairs a picture of the sample, times the pictures of the whole. Its error is that of
drawing pages at random. Pages that stand in one file of a crawl are alike, so the error is computed over files too, and the
larger one is told. A few huge pages may hold most pairs; then no sample without them knows, and no error computed from it
either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from semantica.data.dataset import FileEntry, read_manifest
from semantica.data.location import Location
from semantica.errors import DataError
from semantica.pairs.scores import read_blocks
from semantica.pairs.selection import BandConfig, ScoredPairs, score_rows

_MIN_FILES = 8  # fewer say nothing of how files differ
MIN_PAGES = 30  # with fewer, the error that is told is too small (Cochran 1977, section 6.4)


@dataclass(frozen=True)
class Estimate:
    """A number that is expected, and its standard error."""

    number: float | int
    se: float | int


@dataclass(frozen=True)
class ExpectedPairs:
    """Of the whole corpus: pairs and targets in the band. pairs_per_page: scored ones, in the band or not."""

    pairs: Estimate
    targets: Estimate
    pairs_per_page: float | int
    num_pages: int
    num_images: int


@dataclass(frozen=True)
class PageCounts:
    """Of every page of a sample: pictures, scored pairs, pairs and targets in the band, and which file it stands in."""

    images: Int[np.ndarray, " p"]
    scored: Int[np.ndarray, " p"]
    pairs: Int[np.ndarray, " p"]
    targets: Int[np.ndarray, " p"]
    file: Int[np.ndarray, " p"]

    def __getitem__(self, pages: Int[np.ndarray, " q"]) -> PageCounts:
        return PageCounts(*(getattr(self, name)[pages] for name in ("images", "scored", "pairs", "targets", "file")))


def page_counts(scores: Location, band: BandConfig) -> PageCounts:
    """The counts of every page of a finished scores dataset. Raises DataError when it is missing or has no pages."""
    rows: list[tuple[int, int, int, int, int]] = []
    for number, entry in enumerate(read_manifest(scores, "scores").shards()):
        rows += _rows(scores, entry, number, band)
    if not rows:
        raise DataError(f"scores: {scores} holds no page; run semantica pairs on a larger sample")
    return PageCounts(*np.array(rows, np.int64).T)


def _rows(scores: Location, entry: FileEntry, number: int, band: BandConfig) -> list[tuple[int, int, int, int, int]]:
    rows = []
    for _, table in read_blocks(scores, entry, ["num_images", band.score]):
        for num_images, upper in score_rows(table, band.score):
            kept = np.flatnonzero(band.holds(upper))
            first, second = ScoredPairs(0, 0, np.array([num_images]), upper).ends
            targets = len(np.union1d(first[kept], second[kept]))
            rows.append((num_images, len(upper), len(kept), targets, number))
    return rows


def expected_pairs(sample: PageCounts, num_images: float | int) -> ExpectedPairs:
    """What a corpus of num_images training pictures is expected to have, of which the sample is a part."""
    return ExpectedPairs(
        pairs=_estimate(sample.pairs, sample, num_images),
        targets=_estimate(sample.targets, sample, num_images),
        pairs_per_page=float(sample.scored.mean()),
        num_pages=len(sample.images),
        num_images=int(sample.images.sum()),
    )


def _estimate(counts: Int[np.ndarray, " p"], sample: PageCounts, num_images: float | int) -> Estimate:
    seen = int(sample.images.sum())
    ratio = counts.sum() / seen
    left = math.sqrt(max(0.0, 1 - seen / num_images))  # of a finite corpus the sample's own part is known
    rest = counts - ratio * sample.images
    by_file = np.bincount(sample.file, weights=rest)[np.unique(sample.file)]
    errors = [_spread(rest)] + ([_spread(by_file)] if len(by_file) >= _MIN_FILES else [])
    return Estimate(float(ratio * num_images), float(left * max(errors) * num_images / seen))


def _spread(rest: Float[np.ndarray, " n"] | Sequence[float]) -> float:
    """The standard error of the sum of n residuals; infinite for fewer than two, which say nothing."""
    n = len(rest)
    return float(math.sqrt(n / (n - 1) * np.square(rest).sum())) if n > 1 else math.inf
