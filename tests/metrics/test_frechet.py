import numpy as np
import pytest
import scipy.linalg

from semantica.errors import DataError
from semantica.metrics.frechet import FeatureStatistics, frechet_distance


def statistics_of_gaussian(mean, cov, n=1000):
    """Statistics whose mean and covariance are exactly the given ones."""
    mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    return FeatureStatistics(n=n, sum=n * mean, outer=(n - 1) * cov + n * np.outer(mean, mean))


def torch_fidelity_distance(x, y):
    """The formula of torch-fidelity and pytorch-fid, with scipy's matrix square root of the non-symmetric product."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    difference = x.mean(axis=0) - y.mean(axis=0)
    root = scipy.linalg.sqrtm(a @ b)
    return float(difference @ difference + np.trace(a) + np.trace(b) - 2 * np.trace(np.real(root)))


def correlated(generator, n, dim, shift=0.0):
    return generator.standard_normal((n, dim)) @ generator.standard_normal((dim, dim)) / np.sqrt(dim) + shift


def test_commuting_gaussians_give_the_closed_form():
    a = statistics_of_gaussian([0, 1, 2], np.diag([1.0, 4.0, 9.0]))
    b = statistics_of_gaussian([1, 1, 0], np.diag([4.0, 1.0, 0.25]))
    assert frechet_distance(a, b) == pytest.approx((1 + 4) + (1 - 2) ** 2 + (2 - 1) ** 2 + (3 - 0.5) ** 2, rel=1e-12)


def test_non_commuting_2x2_gaussians_give_the_closed_form():
    # For 2x2 matrices tr(AB)^½ = (tr(AB) + 2 det(AB)^½)^½.
    a, b = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.6], [-0.6, 3.0]])
    assert not np.allclose(a @ b, b @ a)
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    expected = 0.25 + np.trace(a) + np.trace(b) - 2 * cross
    distance = frechet_distance(statistics_of_gaussian([0, 0.5], a), statistics_of_gaussian([0, 0], b))
    assert distance == pytest.approx(expected, rel=1e-10)


def test_merged_parts_equal_the_whole_in_any_order():
    x = correlated(np.random.default_rng(0), 100, 7, shift=3.0)
    parts = [FeatureStatistics.of(x[start:stop]) for start, stop in ((0, 1), (1, 40), (40, 40), (40, 100))]
    whole = FeatureStatistics.of(x)
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        merged = sum((parts[i] for i in order), FeatureStatistics.empty(7))
        assert merged.n == whole.n
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(merged.cov, whole.cov, rtol=1e-10, atol=1e-12)


def test_mean_and_covariance_are_numpys_with_n_minus_1():
    x = correlated(np.random.default_rng(1), 50, 5, shift=1.0)
    np.testing.assert_allclose(FeatureStatistics.of(x).mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(FeatureStatistics.of(x).cov, np.cov(x, rowvar=False), rtol=1e-10, atol=1e-12)


def test_the_distance_equals_torch_fidelitys_formula():
    generator = np.random.default_rng(2)
    x, y = correlated(generator, 400, 48), correlated(generator, 300, 48, shift=0.2)
    distance = frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y))
    assert distance == pytest.approx(torch_fidelity_distance(x, y), rel=1e-4)


def test_the_distance_is_symmetric_and_ignores_rotation_shift_and_permutation():
    generator = np.random.default_rng(3)
    x, y = correlated(generator, 80, 10), correlated(generator, 60, 10, shift=0.5)
    rotation, _ = np.linalg.qr(generator.standard_normal((10, 10)))
    expected = frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y))
    for u, v in ((y, x), (x @ rotation, y @ rotation), (x + 5, y + 5), (generator.permutation(x), y)):
        assert frechet_distance(FeatureStatistics.of(u), FeatureStatistics.of(v)) == pytest.approx(expected, rel=1e-8)
    scaled = frechet_distance(FeatureStatistics.of(3 * x), FeatureStatistics.of(3 * y))
    assert scaled == pytest.approx(9 * expected, rel=1e-8)


def test_a_set_is_at_distance_zero_from_itself():
    statistics = FeatureStatistics.of(correlated(np.random.default_rng(4), 40, 6))
    assert 0 <= frechet_distance(statistics, statistics) < 1e-10


@pytest.mark.parametrize("n", [2, 5, 20])
def test_fewer_pictures_than_dimensions_give_the_nuclear_norm_of_the_centred_product(n):
    # tr(ΣaΣb)^½ is the sum of the singular values of XaXbᵀ: exact, without any covariance.
    generator = np.random.default_rng(n)
    x, y = generator.standard_normal((n, 64)), generator.standard_normal((n, 64)) + 0.1
    centred = [(z - z.mean(axis=0)) / np.sqrt(n - 1) for z in (x, y)]
    difference = x.mean(axis=0) - y.mean(axis=0)
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    expected = difference @ difference + sum((z**2).sum() for z in centred) - 2 * cross
    distance = frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y))
    assert distance >= 0
    assert distance == pytest.approx(expected, rel=1e-6)


def test_identical_pictures_have_distance_zero_without_a_warning():
    statistics = FeatureStatistics.of(np.ones((5, 4)))
    with np.errstate(all="raise"):
        assert frechet_distance(statistics, statistics) == 0


def test_float32_features_are_summed_in_float64():
    x = np.full((1000, 1), 1e4, np.float32)
    x[::2] += 1
    assert FeatureStatistics.of(x).cov[0, 0] == pytest.approx(0.25 * 1000 / 999, rel=1e-6)


def test_arrays_carry_the_statistics_through_a_file(tmp_path):
    statistics = FeatureStatistics.of(correlated(np.random.default_rng(5), 30, 4))
    np.savez(tmp_path / "s.npz", **statistics.to_arrays())
    with np.load(tmp_path / "s.npz") as arrays:
        back = FeatureStatistics.from_arrays(arrays)
    assert back.n == 30
    np.testing.assert_array_equal(back.sum, statistics.sum)
    np.testing.assert_array_equal(back.outer, statistics.outer)


def test_too_few_pictures_and_mixed_dimensions_are_named():
    one, many = FeatureStatistics.of(np.ones((1, 3))), FeatureStatistics.of(np.eye(3))
    with pytest.raises(DataError, match="at least 2 pictures for a covariance, got 1"):
        frechet_distance(many, one)
    with pytest.raises(DataError, match="one feature dimension, got 3 and 4"):
        frechet_distance(many, FeatureStatistics.of(np.eye(4)))
    with pytest.raises(DataError, match="one feature dimension, got 3 and 4"):
        many + FeatureStatistics.empty(4)
    with pytest.raises(DataError, match="at least 1 picture, got 0"):
        _ = FeatureStatistics.empty(3).mean


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="in 1 of 2 pictures"):
        FeatureStatistics.of(np.array([[1.0, np.nan], [0.0, 1.0]]))


def test_damaged_arrays_are_refused():
    with pytest.raises(DataError, match="no outer"):
        FeatureStatistics.from_arrays({"n": np.asarray(2), "sum": np.zeros(3)})
    with pytest.raises(DataError, match=r"got \(3,\) and \(2, 2\)"):
        FeatureStatistics.from_arrays({"n": np.asarray(2), "sum": np.zeros(3), "outer": np.zeros((2, 2))})
