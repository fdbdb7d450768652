import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from semantica.errors import DataError
from semantica.measure import manifold as module
from semantica.measure.manifold import manifold


def brute_force(real, generated, k):
    """The papers' definitions over whole matrices of squared distances, exact for small integers."""

    def squared(x, y):
        return ((x[:, None].astype(np.int64) - y[None].astype(np.int64)) ** 2).sum(-1)

    real_radius, generated_radius = (np.sort(squared(z, z), axis=1)[:, k] for z in (real, generated))
    cross = squared(real, generated)
    return (
        (cross <= real_radius[:, None]).any(axis=0).mean(),
        (cross <= generated_radius[None]).any(axis=1).mean(),
        (cross < real_radius[:, None]).sum() / (k * len(generated)),
        (cross.min(axis=1) < real_radius).mean(),
    )


def figures(found):
    return found.precision, found.recall, found.density, found.coverage


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(5, 20), st.integers(5, 20)),
    dim=st.integers(1, 5),
    k=st.integers(1, 4),
    block=st.integers(1, 9),
    values=st.integers(2, 9),
)
def test_blocks_of_any_size_equal_brute_force_also_where_pictures_repeat(seed, sizes, dim, k, block, values):
    generator = np.random.default_rng(seed)
    real, generated = (generator.integers(0, values, (n, dim)) for n in sizes)  # few values: ties and repeated pictures
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        found = manifold(real.astype(np.float32), generated.astype(np.float32), k)
    assert figures(found) == pytest.approx(brute_force(real, generated, k), abs=1e-12)
    assert (found.k, found.num_real, found.num_generated) == (k, *sizes)


@pytest.mark.parametrize("k", [3, 5])
def test_precision_and_recall_are_torch_fidelitys(k):
    generator = np.random.default_rng(0)
    real = generator.standard_normal((300, 12)).astype(np.float32)
    generated = 0.8 * generator.standard_normal((250, 12)).astype(np.float32) + 0.3
    theirs = prc_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(real),
        prc_neighborhood=k,
        prc_batch_size=100,
        save_cpu_ram=False,
        verbose=False,
    )
    found = manifold(real, generated, k)
    assert found.precision == pytest.approx(theirs[KEY_METRIC_PRECISION], rel=1e-6)
    assert found.recall == pytest.approx(theirs[KEY_METRIC_RECALL], rel=1e-6)
    assert 0.05 < found.recall < found.precision < 0.999


def test_two_sets_of_one_distribution_have_the_density_and_coverage_that_naeem_derives():
    # Naeem 2020, lemmas 1 and 2: on average the density is 1, and the coverage about 1 - 2^-k.
    n, k, generator = 60, 5, np.random.default_rng(1)
    found = [manifold(x[:n], x[n:], k) for x in generator.standard_normal((150, 2 * n, 3))]
    expected_coverage = 1 - np.prod([(n - 1 - i) / (2 * n - 1 - i) for i in range(k)])
    for values, expected in (([f.density for f in found], 1.0), ([f.coverage for f in found], expected_coverage)):
        assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / np.sqrt(len(values)))
        assert np.std(values) / np.sqrt(len(values)) < 0.02


def test_a_set_against_itself_and_against_one_far_away():
    x = np.random.default_rng(2).standard_normal((40, 6))
    same, far = manifold(x, x.copy(), 5), manifold(x, x + 100, 5)
    assert figures(same) == (1, 1, 1, 1)  # the picture itself and 4 of its 5 neighbours lie inside each ball
    assert figures(far) == (0, 0, 0, 0)


def test_a_copy_is_on_the_border_of_its_neighbours_ball_and_not_by_chance():
    # Real-valued features far from the origin: the distance of a copy is rounded otherwise in another block.
    generator = np.random.default_rng(3)
    real = generator.standard_normal((64, 40)) + 1000
    copies = np.repeat(real[:16], 4, axis=0)
    distances = ((real[:, None] - real[None]) ** 2).sum(-1)
    radius = np.sort(distances, axis=1)[:, 5]
    expected = (distances[:, :16] < radius[:, None] * (1 - 1e-9)).sum() / (5 * 16)
    for block in (3, 16, 64):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_BLOCK", block)
            assert manifold(real, copies, 5).density == pytest.approx(expected, rel=1e-12)


def test_no_more_pictures_than_neighbours_is_named():
    x = np.zeros((5, 2))
    with pytest.raises(DataError, match="at least 6 real pictures, got 5"):
        manifold(x, np.zeros((9, 2)))
