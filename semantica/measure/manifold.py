"""Precision and recall (Kynkäänniemi 2019), density and coverage (Naeem 2020): how two sets of features lie in each other.

In: features of real and generated pictures. Out: four shares. The ball of a picture reaches to its k-th nearest neighbour in its
own set. Distances are computed in blocks and in float64. Beside the features, at most 4 blocks of 2048 x d and 4 of 2048 x 2048 are
in memory: 256 MiB at 2048 dimensions, for sets of any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from semantica.errors import DataError
from semantica.measure.feature_checks import check_features

_BLOCK = 2048


@dataclass(frozen=True)
class Manifold:
    """precision, recall, coverage: shares, 0 to 1. density: 1 when both sets come from one distribution; it may be larger.

    k: 5 in the paper of density and coverage, 3 in that of precision and recall. All four depend on k, num_real and num_generated.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    num_real: int
    num_generated: int


def manifold(real: Float[np.ndarray, "n d"], generated: Float[np.ndarray, "m _"], k: int = 5) -> Manifold:
    """Precision, recall, density and coverage.

    Precision: the share of generated pictures inside a real ball. Recall: the share of real pictures inside a generated ball.
    Density: the mean number of real balls around a generated picture, divided by k. Coverage: the share of real balls that contain
    a generated picture.

    As in the papers' code, the border belongs to a ball for precision and recall, and does not for density and coverage. Distances
    that differ by less than their rounding are equal, so a copied picture lies on the border exactly. Raises DataError when a set
    has k pictures or fewer, or features that are not finite, or when the dimensions differ.
    """
    if k < 1:
        raise DataError(f"manifold: expected k of 1 or more, got {k}")
    check_features("manifold", {"real": real, "generated": generated}, at_least=k + 1)
    origin = real.mean(axis=0, dtype=np.float64)  # near the features, where |x|² + |y|² - 2xy loses least
    slack = _rounding(origin, real, generated)
    real_radius, generated_radius = (_radius(features, origin, k) for features in (real, generated))
    is_precise, is_recalled = np.zeros(len(generated), bool), np.zeros(len(real), bool)
    nearest, num_inside = np.full(len(real), np.inf), 0
    for rows, x in _blocks(real, origin):
        for columns, y in _blocks(generated, origin):
            distance = _squared_distance(x, y)
            ball = real_radius[rows, None]
            is_precise[columns] |= (distance <= ball + slack).any(axis=0)
            is_recalled[rows] |= (distance <= generated_radius[columns] + slack).any(axis=1)
            num_inside += int(np.count_nonzero(distance < ball - slack))
            nearest[rows] = np.minimum(nearest[rows], distance.min(axis=1))
    is_covered: Bool[np.ndarray, " n"] = nearest < real_radius - slack
    return Manifold(
        precision=float(is_precise.mean()),
        recall=float(is_recalled.mean()),
        density=num_inside / (k * len(generated)),
        coverage=float(is_covered.mean()),
        k=k,
        num_real=len(real),
        num_generated=len(generated),
    )


def _radius(features: Float[np.ndarray, "n d"], origin: Float64[np.ndarray, " d"], k: int) -> Float64[np.ndarray, " n"]:
    """Squared distance of every picture to its k-th nearest other one."""
    # The k + 1 smallest distances seen so far, the picture's own (0) among them. D is symmetric: a block serves rows and columns.
    smallest = np.full((len(features), k + 1), np.inf)
    for rows, x in _blocks(features, origin):
        for columns, y in _blocks(features, origin, start=rows.start):
            distance = _squared_distance(x, y)
            smallest[rows] = _merge(smallest[rows], distance)
            if columns.start != rows.start:
                smallest[columns] = _merge(smallest[columns], distance.T)
    radius: Float64[np.ndarray, " n"] = smallest.max(axis=1)
    return radius


def _merge(smallest: Float64[np.ndarray, "b k1"], distance: Float64[np.ndarray, "b c"]) -> Float64[np.ndarray, "b k1"]:
    k1 = smallest.shape[1]
    return np.partition(np.concatenate([smallest, distance], axis=1), k1 - 1, axis=1)[:, :k1]


def _blocks(
    features: Float[np.ndarray, "n d"], origin: Float64[np.ndarray, " d"], start: int = 0
) -> Iterator[tuple[slice, Float64[np.ndarray, "b d"]]]:
    for first in range(start, len(features), _BLOCK):
        rows = slice(first, min(first + _BLOCK, len(features)))
        yield rows, features[rows].astype(np.float64) - origin


def _squared_distance(x: Float64[np.ndarray, "b d"], y: Float64[np.ndarray, "c d"]) -> Float64[np.ndarray, "b c"]:
    distance: Float64[np.ndarray, "b c"] = x @ y.T
    distance *= -2
    distance += (x * x).sum(axis=1)[:, None]
    distance += (y * y).sum(axis=1)
    return distance


def _rounding(origin: Float64[np.ndarray, " d"], real: Float[np.ndarray, "n d"], generated: Float[np.ndarray, "m d"]) -> float:
    """The largest difference that rounding makes between two equal squared distances: 4 d eps max|x|²."""
    squares = [(x * x).sum(axis=1).max() for features in (real, generated) for _, x in _blocks(features, origin)]
    return float(4 * len(origin) * np.finfo(np.float64).eps * max(squares))
