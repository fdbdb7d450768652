import numpy as np
import pytest

from semantica.measure import nearest as module
from semantica.measure.nearest import nearest_training


def three_sets(dim=16, seed=0):
    generator = np.random.default_rng(seed)
    return tuple(generator.standard_normal((n, dim)) for n in (40, 75, 200))


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [7, 32, 2048])
def test_blocks_of_any_size_find_what_the_whole_matrix_shows(monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    samples, train, held_out = three_sets()
    found = nearest_training(samples, train, held_out)
    cosine = unit(samples) @ unit(train).T
    np.testing.assert_array_equal(found.index, cosine.argmax(axis=1))
    np.testing.assert_allclose(found.cosine, cosine.max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.held_out_cosine, (unit(held_out) @ unit(train).T).max(axis=1), rtol=1e-12)
    assert (found.num_samples, found.num_train, found.num_held_out) == (40, 75, 200)


def test_copies_are_counted_and_found_at_their_original():
    samples, train, held_out = three_sets()
    samples[[3, 8, 30]] = 2.5 * train[[70, 1, 44]] + 0.01
    found = nearest_training(samples, train, held_out)
    assert found.index[[3, 8, 30]].tolist() == [70, 1, 44]
    beyond = np.flatnonzero(found.cosine > found.threshold)
    assert {3, 8, 30} <= set(beyond)
    assert found.share_of_copies == len(beyond) / 40
    share = found.share_of_copies
    assert found.standard_error == pytest.approx(np.sqrt(share * (1 - share) / 40))


def test_the_threshold_lets_at_most_the_named_share_of_held_out_pictures_pass():
    samples, train, held_out = three_sets()
    for quantile in (0.5, 0.9, 0.99):
        found = nearest_training(samples, train, held_out, quantile=quantile)
        assert found.threshold in found.held_out_cosine
        assert found.share_of_held_out == (found.held_out_cosine > found.threshold).mean() <= 1 - quantile + 1e-12
        assert found.share_of_held_out > 1 - quantile - 2 / 200
        assert found.note is None


def test_samples_like_held_out_pictures_pass_no_more_often_than_those():
    generator = np.random.default_rng(5)
    train = generator.standard_normal((100, 8))
    found = nearest_training(generator.standard_normal((2000, 8)), train, generator.standard_normal((2000, 8)), quantile=0.9)
    assert found.share_of_copies == pytest.approx(0.1, abs=4 * np.sqrt(2 * 0.1 * 0.9 / 2000))


def test_the_held_out_pictures_themselves_are_no_copies():
    _, train, held_out = three_sets()
    found = nearest_training(held_out[::-1], train, held_out)
    assert found.share_of_copies == found.share_of_held_out


@pytest.mark.parametrize("block", [4, 2048])
def test_of_equal_training_pictures_the_first_is_named(monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    samples, train, held_out = three_sets(dim=300)
    repeated = np.concatenate([train, 3 * train, train[::-1]])  # the same directions, rounded otherwise
    once, thrice = nearest_training(samples, train, held_out), nearest_training(samples, repeated, held_out)
    np.testing.assert_array_equal(thrice.index, once.index)


def test_a_corpus_mean_is_subtracted_from_all_three():
    samples, train, held_out = three_sets()
    mean = np.linspace(1, 5, 16)
    plain = nearest_training(samples, train, held_out)
    moved = nearest_training(samples + mean, train + mean, held_out + mean, mean=mean)
    np.testing.assert_array_equal(moved.index, plain.index)
    assert moved.threshold == pytest.approx(plain.threshold, rel=1e-9)


def test_too_few_held_out_pictures_for_the_quantile_are_noted():
    samples, train, held_out = three_sets()
    found = nearest_training(samples, train, held_out[:50])
    assert found.threshold == found.held_out_cosine.max()
    assert found.note == "the threshold is the largest cosine of 50 held-out pictures: the 0.99 quantile needs 100 or more"
    assert nearest_training(samples, train, held_out[:100]).note is None
