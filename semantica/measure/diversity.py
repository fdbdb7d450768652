"""How much the samples of one condition differ from each other. A model that always draws the same picture has diversity 0.

In: features of the samples, and the condition of each. Out: one figure per condition, the mean, and its standard error over
conditions. `mean_effective` compares only between equal numbers of samples per condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from semantica.errors import DataError
from semantica.measure.feature_checks import check_features, unit_rows


@dataclass(frozen=True, eq=False)
class Diversity:
    """mean: over conditions, of the mean cosine distance (1 - cosine) of two different samples, 0 to 2, with its standard error.

    mean_effective: over conditions, of the effective number of different samples, from 1 to the number drawn (Vendi score, Friedman
    2023, cosine kernel). condition: the conditions with two or more samples, in the order of `per_condition` and `effective`.
    left_out: the conditions with one sample. num_conditions, num_samples: the numbers that the figures are based on.
    """

    mean: float
    standard_error: float
    mean_effective: float
    num_conditions: int
    num_samples: int
    condition: Int[np.ndarray, " k"]
    per_condition: Float64[np.ndarray, " k"]
    effective: Float64[np.ndarray, " k"]
    left_out: tuple[int, ...]

    @property
    def note(self) -> str | None:
        """A note for the report when conditions were left out, else None."""
        if not self.left_out:
            return None
        return f"{len(self.left_out)} conditions with one sample have no diversity and are left out ({_some(self.left_out)})"


def diversity(
    features: Float[np.ndarray, "s d"],
    condition_of_sample: Int[np.ndarray, " _"],
    mean: Float[np.ndarray, " d"] | None = None,
) -> Diversity:
    """Mean pairwise cosine distance among the samples of one condition. All conditions have the same weight.

    `mean` (of a corpus) is subtracted before the cosine. Raises DataError for fewer than two conditions with two or more samples,
    which a standard error needs, and for features of length zero.
    """
    if len(condition_of_sample) != len(features):
        raise DataError(f"diversity: expected one condition for each of {len(features)} samples, got {len(condition_of_sample)}")
    check_features("diversity", {"sample": features})
    present, position, counts = np.unique(condition_of_sample, return_inverse=True, return_counts=True)
    used = np.flatnonzero(counts >= 2)
    left_out = tuple(int(c) for c in present[counts < 2])
    if len(used) < 2:
        raise DataError(
            f"diversity: expected 2 or more conditions with 2 or more samples each, got {len(used)} "
            f"(and {len(left_out)} with one sample); draw more samples per condition"
        )
    unit = unit_rows(features, mean, "sample")
    order = np.split(np.argsort(position, kind="stable"), np.cumsum(counts)[:-1])
    figures = np.array([_of_one(unit[order[i]]) for i in used])
    distances, effective = figures[:, 0], figures[:, 1]
    return Diversity(
        mean=float(distances.mean()),
        standard_error=float(distances.std(ddof=1) / np.sqrt(len(used))),
        mean_effective=float(effective.mean()),
        num_conditions=len(used),
        num_samples=int(counts[used].sum()),
        condition=present[used],
        per_condition=distances,
        effective=effective,
        left_out=left_out,
    )


def _of_one(unit: Float64[np.ndarray, "m d"]) -> tuple[float, float]:
    """(mean cosine distance of two different rows, exp of the entropy of the cosine matrix's eigenvalues over m)."""
    m = len(unit)
    cosine = unit @ unit.T
    distance = 1 - (cosine.sum() - np.trace(cosine)) / (m * (m - 1))
    share = np.linalg.eigvalsh(cosine / m)
    share = share[share > m * np.finfo(np.float64).eps]  # p ln p is 0 at 0, where rounding leaves ±1e-16
    return max(float(distance), 0.0), float(np.exp(-(share * np.log(share)).sum()))


def _some(conditions: tuple[int, ...], at_most: int = 5) -> str:
    named = ", ".join(map(str, conditions[:at_most]))
    return named + (", ..." if len(conditions) > at_most else "")
