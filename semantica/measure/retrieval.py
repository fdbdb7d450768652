"""Does a sample show the same thing? Whether the nearest of 100 pictures of different pages is the one of its own page.

In: features of queries (samples, say) and of one gallery picture of each page, from one encoder. Out: `Retrieval`. Chance is
1 / num_ways. Which other pages are in the gallery is not drawn: the figure is the expectation over all choices of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.special import gammaln

from semantica.errors import DataError
from semantica.measure.feature_checks import unit_rows

NUM_WAYS = 100


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
    from both sides before the cosine. A tie is shared: pages that are as near as the own one count as half nearer. Raises
    DataError for fewer than two pages in the gallery or with queries, and for an index out of range.
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
    nearer = (cosines > own).sum(1) + ((cosines == own).sum(1) - 1) / 2
    per_page = np.bincount(position, weights=_first_of(nearer, num_pages, ways)) / np.bincount(position)
    return Retrieval(
        accuracy=float(per_page.mean()),
        standard_error=float(per_page.std(ddof=1) / np.sqrt(len(present))),
        num_ways=ways,
        page=present,
        per_page=per_page,
    )


def _first_of(nearer: Float64[np.ndarray, " q"], num_pages: int, ways: int) -> Float64[np.ndarray, " q"]:
    """The probability that none of the `nearer` pages is among ways - 1 that are drawn from the num_pages - 1 others.

    C(others - nearer, ways - 1) / C(others, ways - 1), by logarithms of the gamma function.
    """
    others, drawn = num_pages - 1, ways - 1
    left = others - nearer
    possible = left >= drawn
    at = np.where(possible, left, drawn)
    ratio = gammaln(at + 1) - gammaln(at - drawn + 1) - gammaln(others + 1) + gammaln(others - drawn + 1)
    return np.where(possible, np.exp(ratio), 0.0)
