import numpy as np
import pytest

from semantica.errors import DataError
from semantica.measure.similarity import own_and_other

AXES = np.eye(3)


def test_samples_equal_to_their_orthogonal_conditions_score_one_and_zero():
    result = own_and_other(2.0 * AXES[[0, 0, 1, 2]], AXES, np.array([0, 0, 1, 2]))
    assert (result.own, result.other, result.difference, result.standard_error) == (1.0, 0.0, 1.0, 0.0)
    assert (result.num_conditions, result.num_samples) == (3, 4)
    assert result.num_standard_errors == float("inf")


def test_every_condition_weighs_the_same_however_many_samples_it_has():
    # Condition 0: three samples, all on it (own 1, other 0). Condition 1: one sample, which is condition 0 (own 0, other 1 and 0).
    result = own_and_other(AXES[[0, 0, 0, 0]], AXES, np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(result.per_condition_own, [1, 0])
    np.testing.assert_allclose(result.per_condition_other, [0, 0.5])
    np.testing.assert_array_equal(result.condition, [0, 1])
    assert (result.own, result.other, result.difference) == (0.5, 0.25, 0.25)
    # Differences 1 and -½: standard deviation 1.5/√2, standard error 1.5/2.
    assert result.standard_error == pytest.approx(0.75)
    assert result.num_standard_errors == pytest.approx(1 / 3)


def test_more_samples_of_one_condition_do_not_shrink_the_standard_error():
    few = own_and_other(AXES[[0, 0]], AXES, np.array([0, 1]))
    many = own_and_other(AXES[[0] * 200], AXES, np.array([0, 1] * 100))
    assert many.standard_error == pytest.approx(few.standard_error)


def test_the_mean_is_subtracted_from_both_sides_before_the_cosine():
    mean = np.array([10.0, 0.0, 0.0])
    conditions = mean + np.array([[0, 1, 0], [0, -1, 0]])
    plain = own_and_other(conditions, conditions, np.array([0, 1]))
    centred = own_and_other(conditions, conditions, np.array([0, 1]), mean)
    assert (plain.own, plain.other) == pytest.approx((1, 99 / 101))
    assert (centred.own, centred.other) == pytest.approx((1, -1))


def test_samples_that_ignore_their_condition_differ_by_a_few_standard_errors_at_most():
    generator = np.random.default_rng(0)
    conditions, samples = generator.standard_normal((64, 16)), generator.standard_normal((256, 16))
    result = own_and_other(samples, conditions, np.repeat(np.arange(64), 4))
    assert abs(result.num_standard_errors) < 3


def test_refusals_name_the_numbers():
    with pytest.raises(DataError, match="at least 2 conditioning pictures, got 1"):
        own_and_other(AXES[:2], AXES, np.array([1, 1]))
    with pytest.raises(DataError, match="indices below 3 conditions, got 0 to 3"):
        own_and_other(AXES[:2], AXES, np.array([0, 3]))
    with pytest.raises(DataError, match=r"sample features: .* in 1 of 2"):
        own_and_other(np.array([[0.0, 0, 0], [1, 0, 0]]), AXES, np.array([0, 1]))
