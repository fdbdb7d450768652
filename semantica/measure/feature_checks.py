"""The requirements of all metrics on features: enough pictures, one dimension, finite numbers; and unit vectors.

In: sets of features, by their names for the message ("real", "generated"). Raises DataError with one sentence for a fault.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float64

from semantica.errors import DataError

_CHUNK = 8192  # rows that are checked at a time


def check_features(metric: str, sets: Mapping[str, Float[np.ndarray, "_ _"]], at_least: int = 2) -> None:
    """Raise DataError when a set has fewer than `at_least` pictures or a NaN, or when the feature dimensions differ."""
    for name, features in sets.items():
        if len(features) < at_least:
            raise DataError(f"{metric}: expected at least {at_least} {name} pictures, got {len(features)}")
    dims = {name: features.shape[1] for name, features in sets.items()}
    if len(set(dims.values())) > 1:
        got = " and ".join(f"{dim} ({name})" for name, dim in dims.items())
        raise DataError(f"{metric}: expected one feature dimension, got {got}; use one extractor for all sets")
    for name, features in sets.items():
        chunks = (features[start : start + _CHUNK] for start in range(0, len(features), _CHUNK))
        bad = sum(int((~np.isfinite(chunk)).any(axis=1).sum()) for chunk in chunks)
        if bad:
            raise DataError(
                f"{metric}: expected finite features, got NaN or infinity in {bad} of {len(features)} {name} pictures; "
                "extract them again"
            )


def unit_rows(features: Float[np.ndarray, "n d"], mean: Float[np.ndarray, " d"] | None, what: str) -> Float64[np.ndarray, "n d"]:
    """The features minus `mean` (None: unchanged), scaled to length one. Raises DataError for features of length zero."""
    x = features.astype(np.float64) - (0.0 if mean is None else mean.astype(np.float64))
    length = np.linalg.norm(x, axis=1, keepdims=True)
    bad = int((~(length > 0)).sum())  # also counts NaN
    if bad:
        raise DataError(f"{what} features: expected vectors with a direction, got length zero or NaN in {bad} of {len(features)}")
    unit: Float64[np.ndarray, "n d"] = x / length
    return unit
