"""Fréchet distance between two sets of pictures, from feature statistics that add up.

Each worker turns its features into `FeatureStatistics` (n, Σx, Σxxᵀ in float64). Their sum over workers is that of the whole set,
for any split. `frechet_distance` of two statistics is the figure; with Inception features it is the FID. A set that is compared
with many others becomes a `Reference`: its covariance is factored once. The figure is biased upwards at small n (by about 1/n). So
a report shows n beside it, and figures with different n cannot be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64, Int64, Shaped

from semantica.errors import DataError

Array = Shaped[np.ndarray, "..."]

_CHUNK = 4096  # rows that are converted to float64 at a time: 64 MiB at 2048 dimensions


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Count, sum and sum of outer products of feature vectors; `a + b` has the statistics of both sets together."""

    n: int
    sum: Float64[np.ndarray, " d"]
    outer: Float64[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> FeatureStatistics:
        """The statistics of the rows of `features`. Raises DataError when a feature is not finite."""
        dim = features.shape[1]
        total, outer, num_bad = np.zeros(dim), np.zeros((dim, dim)), 0
        for start in range(0, len(features), _CHUNK):
            x = features[start : start + _CHUNK].astype(np.float64)
            num_bad += int((~np.isfinite(x)).any(axis=1).sum())
            if not num_bad:
                total += x.sum(axis=0)
                outer += x.T @ x
        if num_bad:
            raise DataError(f"features: expected finite numbers, got NaN or infinity in {num_bad} of {len(features)} pictures")
        return cls(n=len(features), sum=total, outer=outer)

    @classmethod
    def empty(cls, dim: int) -> FeatureStatistics:
        """The statistics of no picture: the neutral element of `+`."""
        return cls(n=0, sum=np.zeros(dim), outer=np.zeros((dim, dim)))

    @property
    def dim(self) -> int:
        return len(self.sum)

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """The statistics of both sets together. Raises DataError when the feature dimensions differ."""
        _same_dim(self, other)
        return FeatureStatistics(n=self.n + other.n, sum=self.sum + other.sum, outer=self.outer + other.outer)

    def __add__(self, other: FeatureStatistics) -> FeatureStatistics:
        return self.merge(other)

    @property
    def mean(self) -> Float64[np.ndarray, " d"]:
        """Mean of the features. Raises DataError when there is no picture."""
        if self.n < 1:
            raise DataError("feature statistics: expected at least 1 picture, got 0")
        return self.sum / self.n

    @property
    def cov(self) -> Float64[np.ndarray, "d d"]:
        """Covariance with n - 1 in the denominator, as torch-fidelity and pytorch-fid. Raises DataError below 2 pictures."""
        if self.n < 2:
            raise DataError(f"feature statistics: expected at least 2 pictures for a covariance, got {self.n}")
        mean = self.mean
        covariance: Float64[np.ndarray, "d d"] = (self.outer - self.n * np.outer(mean, mean)) / (self.n - 1)
        return covariance

    def to_arrays(self) -> dict[str, Array]:
        """Plain arrays for np.savez or an Arrow row; `from_arrays` reads them."""
        return {"n": np.asarray(self.n, dtype=np.int64), "sum": self.sum, "outer": self.outer}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> FeatureStatistics:
        """The statistics from the arrays of `to_arrays`. Raises DataError when an array is missing or the shapes disagree."""
        missing = [name for name in ("n", "sum", "outer") if name not in arrays]
        if missing:
            raise DataError(f"feature statistics: expected arrays n, sum and outer, got no {' and no '.join(missing)}")
        total, outer = np.asarray(arrays["sum"], np.float64), np.asarray(arrays["outer"], np.float64)
        if total.ndim != 1 or outer.shape != (len(total), len(total)):
            raise DataError(f"feature statistics: expected sum (D,) and outer (D, D), got {total.shape} and {outer.shape}")
        n = np.asarray(arrays["n"])
        if n.shape != () or not np.issubdtype(n.dtype, np.integer):
            raise DataError(f"feature statistics: expected one whole number n, got {n.dtype} of shape {n.shape}")
        return cls(n=int(n), sum=total, outer=outer)


@dataclass(frozen=True, eq=False)
class Reference:
    """The statistics of a set that other sets are compared with, and a root of its covariance.

    root: lower triangular, with as many columns as the covariance has rank; root @ root.T = cov[pivots][:, pivots].
    """

    statistics: FeatureStatistics
    root: Float64[np.ndarray, "d r"]
    pivots: Int64[np.ndarray, " d"]

    @classmethod
    def of(cls, statistics: FeatureStatistics) -> Reference:
        """The statistics and a root of their covariance, by Cholesky's factorisation with pivots, which ends at the rank.

        The columns of this root are graded, so small variances keep their digits. In V·diag(λ)^½ from `eigh` they would be lost in
        the rounding of the largest variance. Raises DataError for fewer than 2 pictures.
        """
        packed, pivots, rank, _ = scipy.linalg.lapack.dpstrf(statistics.cov, lower=1)
        rank = min(int(rank), statistics.n - 1)  # the covariance of n vectors has rank n - 1 at most; the rest is rounding
        return cls(statistics=statistics, root=np.ascontiguousarray(np.tril(packed)[:, :rank]), pivots=pivots.astype(np.int64) - 1)

    def product(self, cov: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "r r"]:
        """FᵀΣF of another covariance Σ; only the lower triangle is meant."""
        inner = cov[self.pivots][:, self.pivots]
        product: Float64[np.ndarray, "r r"]
        if self.root.shape[1] < len(self.root):
            product = self.root.T @ inner @ self.root
        else:
            # A quarter of the arithmetic of general products. LAPACK is column-major, so it takes and returns transposes.
            product = scipy.linalg.lapack.dsygst(inner.T, self.root.T, itype=2, lower=0)[0].T
        return product


def frechet_distance(a: FeatureStatistics | Reference, b: FeatureStatistics | Reference) -> float:
    """|μa - μb|² + tr(Σa + Σb - 2 (ΣaΣb)^½), never negative (Heusel 2017, eq. 6).

    With Σa = FFᵀ the eigenvalues of ΣaΣb are those of the symmetric FᵀΣbF, so one real `eigvalsh` is enough. There is no matrix
    square root of a non-symmetric product and no complex remainder, and singular covariances (fewer pictures than dimensions) need
    no jitter. The call is fastest when one of the sets is a `Reference`. Raises DataError when either set has fewer than two
    pictures or the feature dimensions differ.
    """
    of_a = a.statistics if isinstance(a, Reference) else a
    of_b = b.statistics if isinstance(b, Reference) else b
    _same_dim(of_a, of_b)
    difference, cov_a, cov_b = of_a.mean - of_b.mean, of_a.cov, of_b.cov
    if isinstance(a, Reference):
        product = a.product(cov_b)
    elif isinstance(b, Reference):
        product = b.product(cov_a)
    elif of_a.n <= of_b.n:  # its covariance may have the lower rank, which makes the product smaller
        product = Reference.of(of_a).product(cov_b)
    else:
        product = Reference.of(of_b).product(cov_a)
    eigenvalues = np.linalg.eigvalsh(product)  # reads the lower triangle
    # The covariance of n vectors has rank n - 1 at most. Further eigenvalues are rounding, and their roots would add up.
    rank = min(len(eigenvalues), of_a.n - 1, of_b.n - 1)
    cross = float(np.sqrt(eigenvalues[len(eigenvalues) - rank :].clip(min=0)).sum())
    distance = float(difference @ difference) + float(np.trace(cov_a) + np.trace(cov_b)) - 2 * cross
    return max(distance, 0.0)


def _same_dim(a: FeatureStatistics, b: FeatureStatistics) -> None:
    if a.dim != b.dim:
        raise DataError(
            f"feature statistics: expected one feature dimension, got {a.dim} and {b.dim}; use one extractor for both sets"
        )
