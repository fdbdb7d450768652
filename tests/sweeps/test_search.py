from dataclasses import replace

import numpy as np
import pytest

from semantica.config import from_dict
from semantica.sweeps.search import choose, num_trials
from semantica.sweeps.settings import MeasureConfig, SweepConfig
from semantica.sweeps.space import SpaceConfig, grid

RANGES = SpaceConfig(learning_rate_range=(1e-5, 1e-1), band_low_range=(-1.0, 0.2), band_high_range=(0.3, 1.0))


def test_the_grid_comes_in_order():
    config = SweepConfig(space=SpaceConfig(learning_rate=(1e-3, 2e-3)))
    assert num_trials(config, ["one"]) == 4
    assert [choose(config, ["one"], index) for index in range(4)] == grid(config.space, ["one"])


def test_random_draws_depend_on_seed_and_index_alone_and_fill_the_ranges():
    config = SweepConfig(space=RANGES, search="random", num_trials=300)
    found = [choose(config, ["a", "b"], index) for index in range(300)]
    assert found == [choose(config, ["a", "b"], index) for index in range(300)]
    assert found[:50] != [choose(replace(config, seed=1), ["a", "b"], index) for index in range(50)]
    exponents = np.log10([choice["learning_rate"] for choice in found])
    assert exponents.min() >= -5
    assert exponents.max() <= -1
    assert abs(exponents.mean() + 3) < 5 * (4 / np.sqrt(12 * 300))  # uniform in the logarithm
    for name, (low, high) in (("band_low", (-1.0, 0.2)), ("band_high", (0.3, 1.0))):
        values = np.array([choice[name] for choice in found])
        assert low <= values.min()
        assert values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 5 * (high - low) / np.sqrt(12 * 300)
    assert {choice["encoder"] for choice in found} == {"a", "b"}
    assert {choice["patching"] for choice in found} == {"2x2", "none"}


def searched(made, config, num, figure):
    """The trials of a search whose figure is `figure(drawn)`."""
    results = []
    for index in range(num):
        choice = choose(config, ["one"], index, results)
        results.append(replace(made(index, [figure(choice)] * 4), drawn=choice))
    return results


def far_from_best(choice):
    return (np.log10(choice["learning_rate"]) + 2) ** 2 + (0.0 if choice["patching"] == "none" else 1.0)


def test_optuna_comes_nearer_to_the_best_than_random_draws(made):
    space = SpaceConfig(learning_rate_range=(1e-6, 1e-1))
    medians = {}
    for search in ("optuna", "random"):
        best = []
        for seed in range(5):
            config = SweepConfig(space=space, search=search, num_trials=30, seed=seed)
            best.append(min(result.final for result in searched(made, config, 30, far_from_best)))
        medians[search] = np.median(best)
    assert medians["optuna"] < medians["random"]


def test_optuna_goes_on_from_the_disk_as_if_it_had_not_been_stopped(made):
    config = SweepConfig(space=SpaceConfig(learning_rate_range=(1e-6, 1e-1)), search="optuna", num_trials=14)
    whole = searched(made, config, 14, far_from_best)
    assert [choose(config, ["one"], index, whole[:index]) for index in range(14)] == [result.drawn for result in whole]


def test_optuna_takes_stopped_diverged_and_running_trials(made):
    config = SweepConfig(space=SpaceConfig(learning_rate=(1e-3, 2e-3)), search="optuna", num_trials=30)
    results = []
    for index in range(16):
        choice = choose(config, ["one"], index, results)
        assert set(choice) == {"patching", "learning_rate"}
        curve = [5.0 + index] * (4, 2, 1, 0)[index % 4]
        made_one = made(index, curve, status=("", "stopped", "diverged", "running")[index % 4])
        results.append(replace(made_one, drawn=choice))


@pytest.mark.parametrize(("num_steps", "expected"), [(8, (1, 2, 3, 4, 5, 6, 7, 8)), (100, (12, 25, 37, 50, 62, 75, 87, 100))])
def test_points_are_even_and_end_with_the_training(num_steps, expected):
    assert MeasureConfig(num_points=8).steps(num_steps) == expected


def test_more_points_than_steps_and_other_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"measure.num_points must be at most train.num_steps = 7, got 8"):
        MeasureConfig(num_points=8).steps(7)
    with pytest.raises(ValueError, match=r"grace_points must be in 1..measure.num_points = 8, got 9"):
        from_dict(SweepConfig, {"grace_points": 9})
    with pytest.raises(ValueError, match=r"extractor must be one of dinov2, inception, .*, got 'vgg'"):
        from_dict(SweepConfig, {"measure": {"extractor": "vgg"}})
