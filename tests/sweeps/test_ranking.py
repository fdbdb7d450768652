import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ray.tune.schedulers.async_hyperband import _Bracket

from semantica.sweeps.halving import milestones, simulated_asha
from semantica.sweeps.ranking import rank_correlations, share_of_grid, winner

FIGURES = st.floats(0.5, 500, allow_nan=False)


@settings(deadline=None)
@given(st.lists(FIGURES, min_size=2, max_size=20, unique=True))
def test_a_ranking_that_never_changes_correlates_by_one_and_its_reverse_by_minus_one(finals):
    curves = [[-(value), value**3, value] for value in finals]
    backward, forward = rank_correlations(curves)
    assert forward == pytest.approx(1.0)
    assert backward == pytest.approx(-1.0)


@settings(deadline=None)
@given(st.lists(st.tuples(FIGURES, FIGURES), min_size=3, max_size=15, unique_by=(lambda p: p[0], lambda p: p[1])))
def test_without_ties_it_is_spearmans_formula(pairs):
    ranks = [np.argsort(np.argsort([pair[side] for pair in pairs])) for side in (0, 1)]
    n = len(pairs)
    expected = 1 - 6 * float(((ranks[0] - ranks[1]) ** 2).sum()) / (n * (n**2 - 1))
    assert rank_correlations(pairs) == pytest.approx([expected])


def test_equal_figures_have_no_ranking_and_one_trial_none():
    assert math.isnan(rank_correlations([[1.0, 2.0], [1.0, 3.0]])[0])
    assert rank_correlations([[1.0, 2.0]]) == []


def test_the_winner_has_finished_and_the_lowest_final_figure(made):
    results = [made(0, [9, 8, 7, 6]), made(1, [1.0]), made(2, [9, 8, 7, 5]), made(3, [9, 8, 7, 5]), made(4, [], status="diverged")]
    assert winner(results).index == 2
    assert winner(results[1:2]) is None
    assert winner([replace(results[0], is_trained=False)]) is None  # its last figure is there, its model is not


def test_the_share_of_the_grid_is_of_flops(made):
    results = [made(0, [4, 3, 2, 1], flops=1.0), made(1, [5], flops=3.0)]
    assert share_of_grid(results) == pytest.approx((1 * 1 + 3 * 0.25) / 4)
    assert share_of_grid([made(0, [4, 3, 2, 1])]) == 1.0


@settings(deadline=None)
@example(curves=[*[[1.0] * 9] * 3, *[[1.0, 2.0] + [1.0] * 7] * 8], grace=2, factor=3.0)  # at a tie the last bit decides
@given(
    curves=st.lists(st.lists(FIGURES, min_size=9, max_size=9), min_size=1, max_size=12),
    grace=st.integers(1, 4),
    factor=st.sampled_from([1.5, 2.0, 3.0, 4.0]),
)
def test_the_simulation_stops_what_rays_asha_stops(curves, grace, factor):
    named = {f"{index:03d}": curve for index, curve in enumerate(curves)}
    found = simulated_asha(
        named, tuple(range(1, 10)), dict.fromkeys(named, 1.0), grace_points=grace, reduction_factor=factor
    )  # fmt: skip
    bracket = _Bracket(grace, 8 + 1e-6, factor, 0, stop_last_trials=False)
    assert sorted(milestone for milestone, _ in bracket._rungs) == pytest.approx(milestones(9, grace, factor))
    reached = {}
    for name, curve in named.items():
        trial = type("Trial", (), {"trial_id": name})
        reached[name] = next((p for p, value in enumerate(curve, 1) if bracket.on_result(trial, p, -value) == "STOP"), 9)
    assert found.reached == reached
    assert found.share == pytest.approx(sum(reached.values()) / (9 * len(curves)))
    finished = {name: curve[-1] for name, curve in named.items() if reached[name] == 9}
    assert named[found.best][-1] == min(finished.values())
