import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from semantica.errors import DataError
from semantica.measure import frechet
from semantica.measure.frechet import FeatureStatistics, Reference, frechet_distance


def statistics_of_gaussian(mean, cov, n=1000):
    """Statistics whose mean and covariance are exactly the given ones."""
    mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    return FeatureStatistics(n=n, sum=n * mean, outer=(n - 1) * cov + n * np.outer(mean, mean))


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


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 5), (20, 20), (20, 500), (60, 70)])
def test_fewer_pictures_than_dimensions_give_the_nuclear_norm_of_the_centred_product(n, m):
    # tr(ΣaΣb)^½ is the sum of the singular values of XaXbᵀ: exact, without any covariance.
    generator = np.random.default_rng(n)
    x, y = generator.standard_normal((n, 64)) + 5, generator.standard_normal((m, 64)) + 5.1
    centred = [(z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (x, y)]
    difference = x.mean(axis=0) - y.mean(axis=0)
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    expected = difference @ difference + sum((z**2).sum() for z in centred) - 2 * cross
    a, b = FeatureStatistics.of(x), FeatureStatistics.of(y)
    assert frechet_distance(a, b) >= 0
    for found in (frechet_distance(a, b), frechet_distance(a, Reference.of(b)), frechet_distance(Reference.of(a), b)):
        assert found == pytest.approx(expected, rel=1e-9)  # 3e-8 without the knowledge that the rank is below n


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
    for n in (np.zeros(1, int), np.asarray(2.5)):
        with pytest.raises(DataError, match="one whole number n, got"):
            FeatureStatistics.from_arrays({"n": n, "sum": np.zeros(3), "outer": np.zeros((3, 3))})


def clean_fids_distance(x, y, eps=1e-6):
    """The formula of clean-fid: scipy's matrix square root, and a jitter on both covariances where that is not finite."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    if not np.isfinite(root).all():
        root = scipy.linalg.sqrtm((a + eps * np.eye(len(a))) @ (b + eps * np.eye(len(b))))
    difference = x.mean(axis=0) - y.mean(axis=0)
    return float(difference @ difference + np.trace(a) + np.trace(b) - 2 * np.trace(np.real(root)))


def decaying(generator, n, dim, shift, power):
    """Features with a spectrum like that of Inception's: non-negative, correlated, with variances over many decades."""
    rotation, _ = np.linalg.qr(generator.standard_normal((dim, dim)))
    return generator.standard_normal((n, dim)) * (1 + np.arange(dim)) ** -power @ rotation + shift


def named_cases():
    generator = np.random.default_rng(10)
    x, y = decaying(generator, 600, 96, 0.4, 1.0), decaying(generator, 500, 96, 0.45, 1.2)
    yield "full rank", x, y
    yield "fewer pictures than dimensions in one set", x[:60], y
    yield "fewer pictures than dimensions in both", x[:60], y[:40]
    yield "two pictures against many", x[:2], y
    yield "dead features in one set", np.where(np.arange(96) < 30, 0, x), y
    yield "dead features in both", np.where(np.arange(96) < 30, 0.5, x), np.where(np.arange(96) > 80, 0.5, y)
    yield "repeated pictures", np.repeat(x[:30], 20, axis=0), y
    yield "one and the same feature twice", np.concatenate([x[:, :48], x[:, :48]], axis=1), y


@pytest.mark.filterwarnings("ignore:Matrix is singular")  # of clean-fid's way, with dead features
@pytest.mark.parametrize(("x", "y"), [case[1:] for case in named_cases()], ids=[case[0] for case in named_cases()])
def test_the_distance_is_torch_fidelitys_and_clean_fids_whichever_set_is_the_reference(x, y):
    a, b = FeatureStatistics.of(x), FeatureStatistics.of(y)
    theirs = fid_statistics_to_metric(
        *(fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y)),
        False,  # verbose
    )[KEY_METRIC_FID]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-4)
    assert frechet_distance(a, b) == pytest.approx(clean_fids_distance(x, y), rel=1e-4)
    for found in (frechet_distance(Reference.of(a), b), frechet_distance(a, Reference.of(b)), frechet_distance(b, a)):
        assert found == pytest.approx(frechet_distance(a, b), rel=1e-6)


@pytest.mark.parametrize("factor", [1.1, 1.001])
def test_variances_over_nine_decades_keep_their_digits(factor):
    # Σb = c Σa, so the distance is (1 - √c)² tr Σa: the small eigenvalues of ΣaΣb are 1e-18 of the largest.
    spectrum = np.exp(-np.arange(200) / 9.6)
    rotation, _ = np.linalg.qr(np.random.default_rng(11).standard_normal((200, 200)))
    cov = (rotation * spectrum) @ rotation.T
    a, b = (statistics_of_gaussian(np.zeros(200), c * (cov + cov.T) / 2) for c in (1.0, factor))
    expected = (1 - np.sqrt(factor)) ** 2 * spectrum.sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(Reference.of(b), a) == pytest.approx(expected, rel=1e-6)


def test_a_reference_is_a_root_of_the_covariance_with_as_many_columns_as_its_rank():
    generator = np.random.default_rng(12)
    for n, rank in ((100, 64), (60, 59), (12, 11), (2, 1)):
        statistics = FeatureStatistics.of(generator.standard_normal((n, 64)) + 50)  # rounding adds a rank or two
        reference = Reference.of(statistics)
        assert reference.root.shape == (64, rank)
        pivoted = statistics.cov[reference.pivots][:, reference.pivots]
        np.testing.assert_allclose(reference.root @ reference.root.T, pivoted, atol=1e-10)
    with pytest.raises(DataError, match="at least 2 pictures"):
        Reference.of(FeatureStatistics.of(np.ones((1, 3))))


def test_rows_in_several_chunks_give_the_sums_of_one(monkeypatch):
    x = correlated(np.random.default_rng(13), 50, 6, shift=2.0).astype(np.float32)
    whole = FeatureStatistics.of(x)
    monkeypatch.setattr(frechet, "_CHUNK", 7)
    chunked = FeatureStatistics.of(x)
    assert chunked.n == whole.n == 50
    np.testing.assert_allclose(chunked.sum, whole.sum, rtol=1e-13)
    np.testing.assert_allclose(chunked.outer, whole.outer, rtol=1e-13)
    x[[3, 30, 44], 2] = np.nan
    with pytest.raises(DataError, match="in 3 of 50 pictures"):
        FeatureStatistics.of(x)
