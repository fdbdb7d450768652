import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from semantica.errors import DataError
from semantica.measure.kernel import kernel_distance


def two_sets(n=90, m=70, dim=24, shift=0.3):
    generator = np.random.default_rng(0)
    return np.abs(generator.standard_normal((n, dim))), np.abs(generator.standard_normal((m, dim)) + shift)


def torch_fidelitys(real, generated, size, subsets, seed):
    options = {"kid_subset_size": size, "kid_subsets": subsets, "rng_seed": seed, "verbose": False}
    found = kid_features_to_metric(torch.from_numpy(generated), torch.from_numpy(real), **options)
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]


@pytest.mark.parametrize("seed", [0, 2020])
def test_the_same_features_and_seed_give_torch_fidelitys_figure(seed):
    real, generated = two_sets()
    ours = kernel_distance(real, generated, subset_size=50, num_subsets=7, seed=seed)
    mean, std = torch_fidelitys(real, generated, 50, 7, seed)
    assert ours.mean == pytest.approx(mean, rel=1e-10)
    assert ours.std == pytest.approx(std, rel=1e-9)
    assert (ours.subset_size, ours.num_subsets, ours.seed, ours.num_real, ours.num_generated) == (50, 7, seed, 90, 70)


def test_float32_features_give_torch_fidelitys_figure_to_the_rounding_of_float32():
    real, generated = (features.astype(np.float32) for features in two_sets(300, 300, 64))
    ours = kernel_distance(real, generated, subset_size=200, num_subsets=3)
    assert ours.mean == pytest.approx(torch_fidelitys(real, generated, 200, 3, 0)[0], rel=1e-4)


def test_one_subset_of_everything_is_the_sum_over_all_pairs_written_out():
    real, generated = two_sets(6, 6, 3)

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    within = sum(kernel(z[i], z[j]) for z in (real, generated) for i, j in pairs) / 30
    across = sum(kernel(x, y) for x in real for y in generated) / 36
    assert kernel_distance(real, generated, subset_size=6, num_subsets=1).mean == pytest.approx(within - 2 * across, rel=1e-12)


def test_the_estimate_is_unbiased_over_pairs_of_halves_of_one_set():
    generator = np.random.default_rng(1)
    found = [
        kernel_distance(x[:40], x[40:], subset_size=40, num_subsets=1).mean
        for x in generator.standard_normal((400, 80, 6))  # 400 draws from one distribution
    ]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    assert min(found) < 0 < max(found)


def test_fewer_pictures_than_a_subset_is_a_sentence_with_both_numbers():
    real, generated = two_sets(90, 70)
    with pytest.raises(DataError, match=r"at least subset_size = 80 generated pictures, got 70; .* at most 70"):
        kernel_distance(real, generated, subset_size=80)
    with pytest.raises(DataError, match=r"at least subset_size = 1000 real pictures, got 90"):
        kernel_distance(real, generated)
