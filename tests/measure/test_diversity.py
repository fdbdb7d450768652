import numpy as np
import pytest

from semantica.errors import DataError
from semantica.measure.diversity import diversity


def test_the_figures_are_means_over_pairs_then_over_conditions():
    generator = np.random.default_rng(0)
    features = generator.standard_normal((14, 6))
    condition = np.array([7, 3, 3, 7, 3, 9, 9, 3, 7, 9, 9, 9, 3, 9])
    found = diversity(features, condition)
    expected = []
    for c in (3, 7, 9):
        own = features[condition == c]
        unit = own / np.linalg.norm(own, axis=1, keepdims=True)
        pairs = [1 - unit[i] @ unit[j] for i in range(len(own)) for j in range(i)]
        expected.append(np.mean(pairs))
    np.testing.assert_array_equal(found.condition, [3, 7, 9])
    np.testing.assert_allclose(found.per_condition, expected, rtol=1e-12)
    assert found.mean == pytest.approx(np.mean(expected), rel=1e-12)
    assert found.standard_error == pytest.approx(np.std(expected, ddof=1) / np.sqrt(3), rel=1e-12)
    assert (found.num_conditions, found.num_samples, found.left_out, found.note) == (3, 14, (), None)


def test_one_picture_again_and_again_has_diversity_zero_and_orthogonal_ones_have_one():
    same, different = np.tile([3.0, 4.0, 0.0], (3, 1)), 5 * np.eye(3)
    found = diversity(np.concatenate([same, different]), np.repeat([0, 1], 3))
    assert found.per_condition == pytest.approx([0, 1], abs=1e-12)
    assert found.effective == pytest.approx([1, 3], rel=1e-12)
    assert found.mean_effective == pytest.approx(2)


def test_two_samples_each_twice_count_as_two_different_ones():
    twice = np.repeat(np.eye(2), 2, axis=0)
    found = diversity(np.concatenate([twice, twice]), np.repeat([0, 1], 4))
    assert found.effective == pytest.approx([2, 2], rel=1e-12)
    assert found.mean == pytest.approx(4 / 6)  # 4 of the 6 pairs differ


def test_length_does_not_count_and_a_corpus_mean_is_subtracted_first():
    generator = np.random.default_rng(1)
    features, condition, mean = generator.standard_normal((12, 5)), np.repeat(np.arange(3), 4), generator.standard_normal(5)
    plain = diversity(features, condition)
    assert diversity(features * generator.uniform(1, 9, (12, 1)), condition).mean == pytest.approx(plain.mean, rel=1e-12)
    assert diversity(features + mean, condition, mean).mean == pytest.approx(plain.mean, rel=1e-9)
    assert abs(diversity(features + mean, condition).mean - plain.mean) > 1e-3


def test_conditions_with_one_sample_are_left_out_by_name():
    features = np.random.default_rng(2).standard_normal((13, 4))
    condition = np.array([0, 0, 1, 2, 2, 2, 5, 6, 7, 8, 9, 10, 11])
    found = diversity(features, condition)
    assert (found.num_conditions, found.num_samples) == (2, 5)
    assert found.left_out == (1, 5, 6, 7, 8, 9, 10, 11)
    assert found.note == "8 conditions with one sample have no diversity and are left out (1, 5, 6, 7, 8, ...)"
    assert found.mean == diversity(features[[0, 1, 3, 4, 5]], condition[[0, 1, 3, 4, 5]]).mean


def test_too_few_conditions_are_named():
    features = np.random.default_rng(3).standard_normal((4, 4))
    with pytest.raises(DataError, match=r"2 or more conditions with 2 or more samples each, got 1 \(and 2 with one sample\)"):
        diversity(features, np.array([0, 0, 1, 2]))
    with pytest.raises(DataError, match="one condition for each of 4 samples, got 3"):
        diversity(features, np.array([0, 0, 1]))
