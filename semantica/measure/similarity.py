"""Does a sample look like its own conditioning picture? Its cosine to that picture, minus the mean cosine to the other ones.

In: features of samples and conditioning pictures, from one encoder. Out: `OwnOther`, the figure in the report's first sentence. A
model that ignores its condition has difference 0, regardless of the quality of its pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from semantica.errors import DataError
from semantica.measure.feature_checks import unit_rows


@dataclass(frozen=True, eq=False)
class OwnOther:
    """Mean cosine of samples to their own and to the other conditioning pictures, with the standard error of the difference.

    condition: the indices of the conditioning pictures that have samples, in the order of `per_condition_own` and
    `per_condition_other`. own, other, difference: plain means over these, so all conditioning pictures have the same weight.
    """

    own: float
    other: float
    difference: float
    standard_error: float
    num_conditions: int
    num_samples: int
    condition: Int[np.ndarray, " k"]
    per_condition_own: Float64[np.ndarray, " k"]
    per_condition_other: Float64[np.ndarray, " k"]

    @property
    def num_standard_errors(self) -> float:
        """The difference in units of its standard error; infinite when all conditions agree exactly."""
        if self.standard_error == 0:
            return float(np.sign(self.difference)) * float("inf") if self.difference else 0.0
        return self.difference / self.standard_error


def own_and_other(
    sample_features: Float[np.ndarray, "s d"],
    condition_features: Float[np.ndarray, "c d"],
    condition_of_sample: Int[np.ndarray, " s"],
    mean: Float[np.ndarray, " d"] | None = None,
) -> OwnOther:
    """Own and other cosine of samples, averaged per conditioning picture first because samples of one are not independent.

    "Other" is the mean over all conditioning pictures but the sample's own. `mean` (of a corpus, not of these pictures) is
    subtracted from both sides before the cosine. The standard error is that of the per-condition difference over conditions
    (n - 1). Raises DataError for fewer than two conditioning pictures with samples, for an index out of range, and for a feature
    of length zero.
    """
    num_conditions = len(condition_features)
    if len(condition_of_sample) and (condition_of_sample.min() < 0 or condition_of_sample.max() >= num_conditions):
        low, high = int(condition_of_sample.min()), int(condition_of_sample.max())
        raise DataError(f"condition_of_sample: expected indices below {num_conditions} conditions, got {low} to {high}")
    present, position = np.unique(condition_of_sample, return_inverse=True)
    if len(present) < 2:
        raise DataError(f"similarity: expected samples of at least 2 conditioning pictures, got {len(present)}")
    samples, conditions = unit_rows(sample_features, mean, "sample"), unit_rows(condition_features, mean, "condition")
    # The sum of all cosines is the product with the sum of the vectors. The whole matrix of 50,000 pictures would take 20 GB.
    own_of_sample = np.einsum("sd,sd->s", samples, conditions[condition_of_sample])
    other_of_sample = (samples @ conditions.sum(axis=0) - own_of_sample) / (num_conditions - 1)
    samples_of = np.bincount(position)
    own = np.bincount(position, weights=own_of_sample) / samples_of
    other = np.bincount(position, weights=other_of_sample) / samples_of
    difference = own - other
    return OwnOther(
        own=float(own.mean()),
        other=float(other.mean()),
        difference=float(difference.mean()),
        standard_error=float(difference.std(ddof=1) / np.sqrt(len(present))),
        num_conditions=len(present),
        num_samples=len(sample_features),
        condition=present,
        per_condition_own=own,
        per_condition_other=other,
    )
