import numpy as np
import pytest

from semantica.errors import DataError
from semantica.measure.diversity import diversity
from semantica.measure.kernel import kernel_distance
from semantica.measure.manifold import manifold
from semantica.measure.nearest import nearest_training

GOOD = np.random.default_rng(0).standard_normal((12, 4))
CONDITIONS = np.repeat(np.arange(4), 3)


def with_nan(features):
    broken = features.copy()
    broken[[2, 5], 1] = np.nan, np.inf
    return broken


def kernel(real, generated):
    return kernel_distance(real, generated, subset_size=2, num_subsets=1)


def nearest(samples, train):
    return nearest_training(samples, train, GOOD)


@pytest.mark.parametrize(
    ("metric", "second"),
    [(kernel, "generated"), (manifold, "generated"), (nearest, "training")],
    ids=["kernel", "manifold", "nearest"],
)
def test_features_that_are_not_finite_or_of_two_dimensions_are_named(metric, second):
    with pytest.raises(DataError, match=f"got NaN or infinity in 2 of 12 {second} pictures"):
        metric(GOOD, with_nan(GOOD))
    with pytest.raises(DataError, match=rf"one feature dimension, got 4 \(\w+\) and 3 \({second}\)"):
        metric(GOOD, GOOD[:, :3])


def test_diversity_refuses_features_that_are_not_finite_or_have_no_direction():
    with pytest.raises(DataError, match="NaN or infinity in 2 of 12 sample pictures"):
        diversity(with_nan(GOOD), CONDITIONS)
    flat = GOOD.copy()
    flat[3] = 0
    with pytest.raises(DataError, match="length zero or NaN in 1 of 12"):
        diversity(flat, CONDITIONS)


def test_fewer_than_two_pictures_are_named():
    for metric in (lambda x: kernel(x, GOOD), lambda x: kernel(GOOD, x)):
        with pytest.raises(DataError, match=r"at least subset_size = 2 (real|generated) pictures, got 1"):
            metric(GOOD[:1])
    with pytest.raises(DataError, match="at least 6 generated pictures, got 1"):
        manifold(GOOD, GOOD[:1])
    with pytest.raises(DataError, match="at least 2 sample pictures, got 1"):
        diversity(GOOD[:1], CONDITIONS[:1])
    with pytest.raises(DataError, match="at least 2 held-out pictures, got 1"):
        nearest_training(GOOD, GOOD, GOOD[:1])
    with pytest.raises(DataError, match="at least 1 training pictures, got 0"):
        nearest_training(GOOD, GOOD[:0], GOOD)


def test_parameters_out_of_range_are_named():
    with pytest.raises(DataError, match="k of 1 or more, got 0"):
        manifold(GOOD, GOOD, k=0)
    with pytest.raises(DataError, match="subset_size of 2 or more and 1 or more num_subsets, got 1 and 0"):
        kernel_distance(GOOD, GOOD, subset_size=1, num_subsets=0)
    with pytest.raises(DataError, match="quantile above 0 and below 1, got 1"):
        nearest_training(GOOD, GOOD, GOOD, quantile=1.0)
