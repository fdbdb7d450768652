"""Fréchet distance between two sets of pictures, from feature statistics that add up.

Each worker turns its features into `FeatureStatistics` (n, Σx, Σxxᵀ in float64); the sum over workers is that of the whole set,
whatever the split. `frechet_distance` of two of them is the figure; with Inception features it is the FID. It is biased upwards in
small n (about 1/n), so n belongs beside it, and figures with different n do not compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Shaped

from semantica.errors import DataError

Array = Shaped[np.ndarray, "..."]


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Count, sum and sum of outer products of feature vectors; `a + b` is the statistics of both sets together."""

    n: int
    sum: Float64[np.ndarray, " d"]
    outer: Float64[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> FeatureStatistics:
        """The statistics of the rows of `features`. Raises DataError when a feature is not finite."""
        bad = int((~np.isfinite(features)).any(axis=1).sum())
        if bad:
            raise DataError(f"features: expected finite numbers, got NaN or infinity in {bad} of {len(features)} pictures")
        x = features.astype(np.float64)
        return cls(n=len(x), sum=x.sum(axis=0), outer=x.T @ x)

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
        """Plain arrays for np.savez or an Arrow row; `from_arrays` takes them back."""
        return {"n": np.asarray(self.n, dtype=np.int64), "sum": self.sum, "outer": self.outer}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> FeatureStatistics:
        """The statistics that `to_arrays` gave. Raises DataError when an array is missing or the shapes disagree."""
        missing = [name for name in ("n", "sum", "outer") if name not in arrays]
        if missing:
            raise DataError(f"feature statistics: expected arrays n, sum and outer, got no {' and no '.join(missing)}")
        total, outer = np.asarray(arrays["sum"], np.float64), np.asarray(arrays["outer"], np.float64)
        if total.ndim != 1 or outer.shape != (len(total), len(total)):
            raise DataError(f"feature statistics: expected sum (D,) and outer (D, D), got {total.shape} and {outer.shape}")
        return cls(n=int(arrays["n"]), sum=total, outer=outer)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|μa - μb|² + tr(Σa + Σb - 2 (Σa^½ Σb Σa^½)^½), never negative (Heusel 2017, eq. 6, in its symmetric form).

    Σa^½ Σb Σa^½ is symmetric positive semi-definite and has the eigenvalues of ΣaΣb, so real `eigh` suffices: no matrix square root
    of a non-symmetric product, no complex leftovers, and singular covariances (fewer pictures than dimensions) need no jitter.
    Raises DataError when either set has fewer than two pictures or the feature dimensions differ.
    """
    _same_dim(a, b)
    difference, cov_a, cov_b = a.mean - b.mean, a.cov, b.cov
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(_without_noise(values))) @ vectors.T
    product = root_a @ cov_b @ root_a
    # Rounding leaves the product symmetric only to 1e-16; eigvalsh reads one triangle, the mean of both is what is meant.
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    cross = float(np.sqrt(_without_noise(eigenvalues)).sum())
    distance = float(difference @ difference) + float(np.trace(cov_a) + np.trace(cov_b)) - 2 * cross
    return max(distance, 0.0)


def _without_noise(eigenvalues: Float64[np.ndarray, " d"]) -> Float64[np.ndarray, " d"]:
    # A zero eigenvalue comes back as ±1e-16 of the largest one, whose root (1e-8) would add up over 2048 dimensions.
    floor = len(eigenvalues) * np.finfo(np.float64).eps * max(float(eigenvalues[-1]), 0.0)
    return np.where(eigenvalues > floor, eigenvalues, 0.0)


def _same_dim(a: FeatureStatistics, b: FeatureStatistics) -> None:
    if a.dim != b.dim:
        raise DataError(
            f"feature statistics: expected one feature dimension, got {a.dim} and {b.dim}; use one extractor for both sets"
        )
