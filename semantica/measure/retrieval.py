"""Does a sample show the same thing? How often the nearest of 100 pictures of different pages is the one of its own page.

In: features of queries (samples, say) and of one gallery picture of each page, from one encoder. Out: `Retrieval`. Chance is
1 / num_ways. No gallery of num_ways pages is drawn: the figure is the expectation over all of them, and over the order of ties.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from semantica.errors import DataError
from semantica.measure.feature_checks import unit_rows

NUM_WAYS = 100
_ROUNDING = 1e-12  # cosines that differ by less are equal: the same picture on two pages has the same cosine up to rounding


@dataclass(frozen=True, eq=False)
class Retrieval:
    """The share of queries whose own page is the nearest of `num_ways` pages, with its standard error over pages.

    page: the indices of the pages that have queries, in the order of `per_page`. A query's own page is nearest with a probability,
    since its competitors are any num_ways - 1 of the other pages.
    """

    accuracy: float
    standard_error: float
    num_ways: int
    page: Int[np.ndarray, " k"]
    per_page: Float64[np.ndarray, " k"]

    @property
    def chance(self) -> float:
        """The accuracy of a guess."""
        return 1 / self.num_ways


def retrieval(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "p d"],
    page_of_query: Int[np.ndarray, " q"],
    *,
    mean: Float[np.ndarray, " d"] | None = None,
    num_ways: int = NUM_WAYS,
) -> Retrieval:
    """Retrieval by cosine, averaged per page first because queries of one page are not independent.

    gallery: one picture of each of p pages; with fewer than num_ways pages, all of them compete. mean (of a corpus) is subtracted
    from both sides before the cosine. Of a query to which `nearer` other pages are nearer than the own one and t as near, the
    probability is the mean over j = 0..t of P(nearer + j): each place of the own page among equal ones is as likely, and
    P(i) = C(p - 1 - i, k - 1) / C(p - 1, k - 1) is the probability that the k - 1 competitors, drawn from the p - 1 other pages,
    hold none of i given ones. Raises DataError for fewer than two pages in the gallery or with queries, and for an index out of
    range.
    """
    num_pages = len(gallery)
    if num_pages < 2:
        raise DataError(f"retrieval: expected a gallery of at least 2 pages, got {num_pages}")
    if len(page_of_query) and (page_of_query.min() < 0 or page_of_query.max() >= num_pages):
        low, high = int(page_of_query.min()), int(page_of_query.max())
        raise DataError(f"page_of_query: expected indices below {num_pages} pages, got {low} to {high}")
    present, position = np.unique(page_of_query, return_inverse=True)
    if len(present) < 2:
        raise DataError(f"retrieval: expected queries of at least 2 pages, got {len(present)}")
    ways = min(num_ways, num_pages)
    cosines = unit_rows(queries, mean, "query") @ unit_rows(gallery, mean, "gallery").T
    own = cosines[np.arange(len(queries)), page_of_query][:, None]
    nearer = (cosines > own + _ROUNDING).sum(1)
    ties = (np.abs(cosines - own) <= _ROUNDING).sum(1) - 1  # without the own page itself
    absent = _absent(num_pages - 1, ways - 1)
    nearest = [absent[i : i + t + 1].mean() for i, t in zip(nearer, ties, strict=True)]
    per_page = np.bincount(position, weights=nearest) / np.bincount(position)
    return Retrieval(
        accuracy=float(per_page.mean()),
        standard_error=float(per_page.std(ddof=1) / np.sqrt(len(present))),
        num_ways=ways,
        page=present,
        per_page=per_page,
    )


def _absent(others: int, drawn: int) -> Float64[np.ndarray, " _"]:
    """P(i) for i = 0..others: that `drawn` of `others` pages hold none of i given ones.

    P(i + 1) = P(i) (1 - drawn / (others - i)), which is C(others - i, drawn) / C(others, drawn) without large numbers.
    """
    factors = np.maximum(1 - drawn / (others - np.arange(others)), 0)  # 0 once fewer than `drawn` pages are left
    return np.concatenate([[1.0], np.cumprod(factors)])
