"""Kernel distance (KID, Binkowski 2018) between two sets of features: an unbiased figure, so small sets can be compared.

In: features of real and generated pictures. Out: the mean and the spread over random subsets. Kernel, estimator and the choice of
subsets are those of torch-fidelity, so the same features and seed give the same figure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from semantica.errors import DataError
from semantica.measure.feature_checks import check_features


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation of MMD² over subsets, and how the subsets were chosen. A mean slightly below 0 is valid.

    std is the spread of single subsets and not a standard error, since subsets overlap.
    """

    mean: float
    std: float
    subset_size: int
    num_subsets: int
    seed: int
    num_real: int
    num_generated: int


def kernel_distance(
    real: Float[np.ndarray, "n d"],
    generated: Float[np.ndarray, "m _"],
    *,
    subset_size: int = 1000,
    num_subsets: int = 100,
    seed: int = 0,
) -> KernelDistance:
    """MMD² with the kernel (x·y / d + 1)³, unbiased, over subsets without repetition.

    Equals torch-fidelity's figure with the generated set as input 1 and rng_seed = seed, but sums in float64. Raises DataError when
    a set has fewer than subset_size pictures or features that are not finite, or when the dimensions differ.
    """
    if subset_size < 2 or num_subsets < 1:
        raise DataError(
            f"kernel distance: expected a subset_size of 2 or more and 1 or more num_subsets, got {subset_size} and {num_subsets}"
        )
    sets = {"real": real, "generated": generated}
    for name, features in sets.items():
        if len(features) < subset_size:
            raise DataError(
                f"kernel distance: expected at least subset_size = {subset_size} {name} pictures, got {len(features)}; "
                f"give more pictures or a subset_size of at most {min(len(real), len(generated))}"
            )
    check_features("kernel distance", sets)
    # The legacy generator, whose draws never change between numpy versions. torch-fidelity draws for input 1 first.
    draws = np.random.RandomState(seed)
    distances = np.zeros(num_subsets)
    for i in range(num_subsets):
        x = generated[draws.choice(len(generated), subset_size, replace=False)].astype(np.float64)
        y = real[draws.choice(len(real), subset_size, replace=False)].astype(np.float64)
        distances[i] = _squared_mmd(x, y)
    return KernelDistance(
        mean=float(distances.mean()),
        std=float(distances.std()),
        subset_size=subset_size,
        num_subsets=num_subsets,
        seed=seed,
        num_real=len(real),
        num_generated=len(generated),
    )


def _squared_mmd(x: Float64[np.ndarray, "m d"], y: Float64[np.ndarray, "m d"]) -> float:
    # Binkowski 2018, eq. 4: within a set, a picture is not compared with itself.
    m = len(x)
    within = sum(float(k.sum() - np.trace(k)) for k in (_kernel(x, x), _kernel(y, y))) / (m * (m - 1))
    return within - 2 * float(_kernel(x, y).mean())


def _kernel(x: Float64[np.ndarray, "m d"], y: Float64[np.ndarray, "m d"]) -> Float64[np.ndarray, "m m"]:
    k: Float64[np.ndarray, "m m"] = (x @ y.T / x.shape[1] + 1) ** 3
    return k
