"""An estimate of the pairs in a band, with its standard error, from the scores of a sample of the pages.

In: a finished scores dataset of some pages (`semantica pairs` on a sample), a band, and the number of pictures of the whole corpus.
Out: the expected numbers of pairs and of target pictures in the whole corpus, each with a standard error. An epoch draws every
target once.

This is a ratio estimate (Cochran 1977, chapter 6): pairs per picture of the sample, times the pictures of the corpus. The error is
that of drawing pages at random. Pages in one file of a crawl are alike, so the error is computed over files too, and the larger of
the two is reported. When a few huge pages hold most pairs and are not in the sample, neither the estimate nor its error shows it.
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

_MIN_FILES = 8  # with fewer, the spread between files cannot be estimated
MIN_PAGES = 30  # with fewer, the reported error is too small (Cochran 1977, section 6.4)


@dataclass(frozen=True)
class Estimate:
    """An estimated number and its standard error."""

    number: float | int
    se: float | int


@dataclass(frozen=True)
class ExpectedPairs:
    """pairs, targets: in the band, of the whole corpus. pairs_per_page: all scored pairs, in the band or not."""

    pairs: Estimate
    targets: Estimate
    pairs_per_page: float | int
    num_pages: int
    num_images: int


@dataclass(frozen=True)
class PageCounts:
    """For every page of a sample: its pictures, scored pairs, pairs and targets in the band, and the number of its file."""

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
            in_band = np.flatnonzero(band.holds(upper))
            first, second = ScoredPairs(0, 0, np.array([num_images]), upper).ends
            targets = len(np.union1d(first[in_band], second[in_band]))
            rows.append((num_images, len(upper), len(in_band), targets, number))
    return rows


def expected_pairs(sample: PageCounts, num_images: float | int) -> ExpectedPairs:
    """The pairs and targets expected in a corpus of num_images training pictures, of which the sample is a part."""
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
    left = math.sqrt(max(0.0, 1 - seen / num_images))  # finite corpus: the sample's own part has no error
    rest = counts - ratio * sample.images
    by_file = np.bincount(sample.file, weights=rest)[np.unique(sample.file)]
    errors = [_spread(rest)] + ([_spread(by_file)] if len(by_file) >= _MIN_FILES else [])
    return Estimate(float(ratio * num_images), float(left * max(errors) * num_images / seen))


def _spread(rest: Float[np.ndarray, " n"] | Sequence[float]) -> float:
    """The standard error of the sum of n residuals; infinite for fewer than two."""
    n = len(rest)
    return float(math.sqrt(n / (n - 1) * np.square(rest).sum())) if n > 1 else math.inf
