"""How much the samples of one condition differ among themselves: a model that draws one picture again and again has diversity 0.

Features of the samples and the condition of each come in; what leaves is a figure per condition, its mean, and the standard error
over conditions. Compare figures with the same number of samples per condition only where `mean_effective` is meant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from semantica.errors import DataError
from semantica.measure.feature_checks import check_features, unit_rows


@dataclass(frozen=True, eq=False)
class Diversity:
    """mean: of the per-condition mean cosine distance (1 - cosine) of two different samples, 0 to 2, with its standard error.

    mean_effective: of the number of samples that really differ, 1 to the number drawn (Vendi score, Friedman 2023, cosine kernel).
    condition: the conditions with two samples or more, which `per_condition` and `effective` go with; `left_out`: those with
    one. num_conditions, num_samples: what went into the figures.
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
        """What to say beside the figure when conditions were left out, else None."""
        if not self.left_out:
            return None
        return f"{len(self.left_out)} conditions with one sample have no diversity and are left out ({_some(self.left_out)})"


def diversity(
    features: Float[np.ndarray, "s d"],
    condition_of_sample: Int[np.ndarray, " _"],
    mean: Float[np.ndarray, " d"] | None = None,
) -> Diversity:
    """Mean pairwise cosine distance among the samples of one condition, every condition weighing the same.

    `mean` (of a corpus) is subtracted before the cosine. Raises DataError below two conditions with two samples or more, since
    without them there is no standard error, and for features without a direction.
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
            f"(and {len(left_out)} with one sample); draw more samples for each condition"
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
