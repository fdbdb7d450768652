"""Is a sample a copy? Each sample's nearest training picture, compared with that of real pictures never trained on.

In: features of samples, training pictures and held-out pictures. A held-out picture cannot be a copy, so its nearness to the
training set is due to chance and near-duplicates. A sample that is nearer than nearly all held-out pictures is suspicious. Cosines
are computed in blocks: at most 4 blocks of 2048 x d and 2 of 2048 x 2048 float64 are in memory beside the features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from semantica.errors import DataError
from semantica.measure.feature_checks import check_features, unit_rows

_BLOCK = 2048


@dataclass(frozen=True, eq=False)
class Nearest:
    """index, cosine: of each sample's nearest training picture, the first among equals. held_out_cosine: of held-out pictures.

    threshold: the `quantile` of held_out_cosine (the higher of two values when it lies between them). share_of_copies: the share of
    samples beyond the threshold, with its binomial standard error. share_of_held_out: the share of held-out pictures beyond it, at
    most 1 - quantile; compare share_of_copies with it.
    """

    index: Int[np.ndarray, " s"]
    cosine: Float64[np.ndarray, " s"]
    held_out_cosine: Float64[np.ndarray, " h"]
    threshold: float
    quantile: float
    share_of_copies: float
    standard_error: float
    share_of_held_out: float
    num_samples: int
    num_train: int
    num_held_out: int

    @property
    def note(self) -> str | None:
        """A note for the report when there are too few held-out pictures for the quantile, else None."""
        if self.num_held_out * (1 - self.quantile) >= 1:
            return None
        needed = int(np.ceil(1 / (1 - self.quantile)))
        return (
            f"the threshold is the largest cosine of {self.num_held_out} held-out pictures: "
            f"the {self.quantile:g} quantile needs {needed} or more"
        )


def nearest_training(
    samples: Float[np.ndarray, "s d"],
    train: Float[np.ndarray, "t _"],
    held_out: Float[np.ndarray, "h _"],
    *,
    quantile: float = 0.99,
    mean: Float[np.ndarray, " d"] | None = None,
) -> Nearest:
    """Find each sample's nearest training picture by cosine, and the share of samples nearer than `quantile` of held-out pictures.

    `mean` (of a corpus) is subtracted before the cosine. Cosines that differ by less than their rounding are equal. Raises
    DataError without samples, without training pictures, for fewer than two held-out pictures, and for features of length zero.
    """
    if not 0 < quantile < 1:
        raise DataError(f"nearest training picture: expected a quantile above 0 and below 1, got {quantile:g}")
    sets = {"sample": samples, "training": train, "held-out": held_out}
    check_features("nearest training picture", sets, at_least=1)
    check_features("nearest training picture", {"held-out": held_out}, at_least=2)
    index, cosine = _nearest(samples, train, mean, "sample")
    _, held_out_cosine = _nearest(held_out, train, mean, "held-out")
    threshold = float(np.quantile(held_out_cosine, quantile, method="higher"))
    beyond = threshold + _slack(samples.shape[1])
    share = float((cosine > beyond).mean())
    return Nearest(
        index=index,
        cosine=cosine,
        held_out_cosine=held_out_cosine,
        threshold=threshold,
        quantile=quantile,
        share_of_copies=share,
        standard_error=float(np.sqrt(share * (1 - share) / len(samples))),
        share_of_held_out=float((held_out_cosine > beyond).mean()),
        num_samples=len(samples),
        num_train=len(train),
        num_held_out=len(held_out),
    )


def _nearest(
    queries: Float[np.ndarray, "q d"], train: Float[np.ndarray, "t d"], mean: Float[np.ndarray, " d"] | None, what: str
) -> tuple[Int[np.ndarray, " q"], Float64[np.ndarray, " q"]]:
    """(index, cosine) of the nearest training picture of each query."""
    slack = _slack(queries.shape[1])
    index, best = np.zeros(len(queries), np.int64), np.full(len(queries), -np.inf)
    for start in range(0, len(queries), _BLOCK):
        rows = slice(start, start + _BLOCK)
        unit = unit_rows(queries[rows], mean, what)
        for first in range(0, len(train), _BLOCK):
            cosine = unit @ unit_rows(train[first : first + _BLOCK], mean, "training").T
            highest = cosine.max(axis=1)
            # argmax of a bool is the first True: the first picture among those equal to the highest.
            candidate = first + (cosine >= highest[:, None] - slack).argmax(axis=1)
            better = highest > best[rows] + slack
            index[rows] = np.where(better, candidate, index[rows])
            best[rows] = np.where(better, highest, best[rows])
    return index, best.clip(-1.0, 1.0)


def _slack(dim: int) -> float:
    # The rounding of a sum of `dim` products of two unit vectors, which depends on the shape of the blocks.
    return float(4 * dim * np.finfo(np.float64).eps)
