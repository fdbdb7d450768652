"""Verdicts that say what their errors allow: gains of paired seeds, the jackknife over groups, rankings that are alike."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.trials import frechet_figure, mean_figure
from benchmarks.verdicts import (
    CANNOT_TELL,
    FAILS,
    HOLDS,
    Comparison,
    Figure,
    Gain,
    Place,
    common_seeds,
    gain,
    jackknife,
    ranks_alike,
)
from semantica.measure.frechet import FeatureStatistics, Reference, frechet_distance

AB = Comparison(Place("a", "x"), Place("b", "x"))
numbers = st.floats(-100, 100, allow_nan=False)


def figure(value, spread=0.0):
    return Figure(value, tuple(value + spread * x for x in (-1.0, 0.0, 1.0)))


# --- verdicts


def test_a_gain_of_more_than_two_errors_holds_and_a_loss_of_as_much_does_not():
    assert Gain(2.1, 1.0, 0.5, 3).verdict == HOLDS
    assert Gain(-2.1, 1.0, 0.5, 3).verdict == FAILS
    assert Gain(1.9, 1.0, 0.5, 3).verdict == CANNOT_TELL
    assert Gain(-1.9, 1.0, 0.5, 3).verdict == CANNOT_TELL


def test_the_larger_of_the_two_errors_decides():
    assert Gain(5.0, 0.1, 3.0, 3).verdict == CANNOT_TELL
    assert Gain(5.0, 3.0, 0.1, 3).verdict == CANNOT_TELL
    assert Gain(5.0, 2.0, 2.0, 3).verdict == HOLDS


def test_one_training_of_each_of_two_variants_tells_nothing_but_one_model_against_itself_may():
    assert Gain(50.0, None, 0.1, 1).verdict == CANNOT_TELL
    assert Gain(50.0, None, 0.1, 1, is_of_one_training=True).verdict == HOLDS


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=5))
def test_claiming_the_contrary_turns_the_verdict_round(pairs):
    figures = {(name, seed): {"x": figure(values[i], 0.1)} for seed, values in enumerate(pairs) for i, name in enumerate("ab")}
    one, other = gain(figures, AB), gain(figures, Comparison(AB.worse, AB.better))
    turned = {HOLDS: FAILS, FAILS: HOLDS, CANNOT_TELL: CANNOT_TELL}
    assert other.value == -one.value
    assert other.error == one.error
    assert other.verdict == turned[one.verdict]
    higher = gain(figures, Comparison(AB.better, AB.worse, higher_wins=True))
    assert higher.verdict == other.verdict


@given(st.lists(numbers, min_size=2, max_size=6), numbers, st.floats(0.5, 10))
def test_what_all_trainings_of_a_seed_share_is_not_in_the_error(by_seed, base, better_by):
    # Seeds scatter by far more than a and b differ; paired, that scatter is gone.
    figures = {}
    for seed, shift in enumerate(by_seed):
        figures["a", seed] = {"x": figure(base + shift)}
        figures["b", seed] = {"x": figure(base + shift + better_by)}
    found = gain(figures, AB)
    assert found.value == pytest.approx(better_by, abs=1e-9)
    assert found.over_seeds == pytest.approx(0, abs=1e-9)
    assert found.verdict == HOLDS


def test_the_error_over_seeds_is_that_of_the_mean_of_paired_differences():
    figures = {("a", s): {"x": figure(a)} for s, a in enumerate((1.0, 2.0, 4.0))}
    figures |= {("b", s): {"x": figure(b)} for s, b in enumerate((3.0, 3.0, 9.0))}
    found = gain(figures, AB)
    differences = np.array([2.0, 1.0, 5.0])
    assert found.value == pytest.approx(differences.mean())
    assert found.over_seeds == pytest.approx(differences.std(ddof=1) / math.sqrt(3))


def test_only_seeds_that_both_sides_have_are_compared():
    figures = {("a", s): {"x": figure(0.0)} for s in (0, 1, 5)} | {("b", s): {"x": figure(1.0)} for s in (1, 2, 5)}
    figures["b", 0] = {"another address": figure(9.0)}
    assert common_seeds(figures, AB) == [1, 5]
    assert gain(figures, AB).num_seeds == 2
    assert gain({key: of for key, of in figures.items() if key[0] == "a"}, AB) is None


def test_sides_with_other_groups_of_images_are_not_compared():
    figures = {("a", 0): {"x": Figure(1.0, (1.0, 1.0))}, ("b", 0): {"x": Figure(1.0, (1.0, 1.0, 1.0))}}
    with pytest.raises(ValueError, match="groups of conditioning images"):
        gain(figures, AB)


# --- jackknife


@given(st.lists(numbers, min_size=2, max_size=40))
def test_the_jackknife_of_a_mean_is_its_standard_error(values):
    x = np.array(values)
    without = [np.delete(x, i).mean() for i in range(len(x))]
    assert jackknife(without) == pytest.approx(x.std(ddof=1) / math.sqrt(len(x)), abs=1e-9)


def test_a_jackknife_needs_two_groups():
    with pytest.raises(ValueError, match="at least 2 groups"):
        jackknife([1.0])


def test_figures_without_a_group_are_those_of_the_other_rows():
    chance = np.random.default_rng(0)
    features, groups = chance.normal(size=(30, 4)), np.arange(30) % 5
    reference = Reference.of(FeatureStatistics.of(chance.normal(size=(50, 4)) + 1))
    found = frechet_figure(features, groups, reference)
    assert found.value == pytest.approx(frechet_distance(FeatureStatistics.of(features), reference))
    for group, value in enumerate(found.without):
        assert value == pytest.approx(frechet_distance(FeatureStatistics.of(features[groups != group]), reference))
    means = mean_figure(features[:, 0], groups)
    assert means.value == pytest.approx(features[:, 0].mean())
    assert means.without == pytest.approx([features[groups != group, 0].mean() for group in range(5)])


def test_the_jackknife_of_a_frechet_distance_tells_its_scatter_over_drawn_sets():
    chance = np.random.default_rng(1)
    reference = Reference.of(FeatureStatistics.of(chance.normal(size=(4000, 3))))
    drawn = [frechet_figure(chance.normal(size=(320, 3)) * 1.3 + 0.5, np.arange(320) % 16, reference) for _ in range(100)]
    scatter = np.std([f.value for f in drawn], ddof=1)
    told = np.mean([jackknife(f.without) for f in drawn])
    assert told == pytest.approx(scatter, rel=0.2)


def test_rankings_are_alike_by_the_share_of_pairs_that_stand_alike():
    assert ranks_alike({"a": 1, "b": 2, "c": 3}, {"a": 10, "b": 20, "c": 30}) == 1
    assert ranks_alike({"a": 1, "b": 2, "c": 3}, {"a": 3, "b": 2, "c": 1}) == -1
    assert ranks_alike({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "c": 2}) == pytest.approx(1 / 3)
