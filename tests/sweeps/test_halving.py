"""Who goes on in successive halving, from what was measured alone."""

import pytest

from semantica.errors import ConfigError
from semantica.sweeps.halving import next_round
from semantica.sweeps.results import Figure, Result
from semantica.sweeps.settings import SweepConfig

POINTS = 9


def trial(index, figures, ended=None, *, is_trained=False):
    measured = tuple(
        Figure(point=p, step=10 * p, frechet=value, num_samples=8, num_reference=8, extractor="encoder", seconds=1.0,
               measuring_seconds=1.0)
        for p, value in enumerate(figures, 1)
    )  # fmt: skip
    steps = tuple(10 * p for p in range(1, POINTS + 1))
    return Result(
        index=index, name=f"{index:03d}", drawn={}, settings={}, steps=steps, flops=1.0, figures=measured, ended=ended, reason="",
        is_trained=is_trained,
    )  # fmt: skip


def rounds_of(results):
    return next_round(results, num_points=POINTS, grace_points=1, reduction_factor=3.0)


def curve(index, length):
    """Later trials are better."""
    return [100.0 - index - p for p in range(length)]


def played(num, order):
    """(all rounds, the last results): each trial comes to where its round sends it."""
    at, stopped, rounds = dict.fromkeys(range(num), 0), set(), []
    while True:
        results = [
            trial(i, curve(i, at[i]), "stopped" if f"{i:03d}" in stopped else None, is_trained=at[i] == POINTS) for i in order
        ]
        now = rounds_of(results)
        stopped |= {loser.name for loser in now.losers}
        if not now.names:
            return rounds, results
        rounds.append(now)
        for name in now.names:
            at[int(name)] = now.until or POINTS


@pytest.mark.parametrize("order", [range(12), reversed(range(12)), [5, 11, 0, 7, 2, 9, 4, 1, 10, 3, 8, 6]])
def test_twelve_come_to_the_first_point_four_to_the_third_one_to_the_end_in_any_order(order):
    rounds, results = played(12, list(order))
    assert [(len(r.names), r.until) for r in rounds] == [(12, 1), (4, 3), (1, None)]
    assert set(rounds[1].names) == {"008", "009", "010", "011"}
    assert rounds[2].names == ("011",)
    assert sum(r.status == "stopped" for r in results) == 11
    assert {r.name for r in results if r.status == "finished"} == {"011"}


def test_a_round_that_was_cut_goes_on_with_those_that_are_not_there():
    results = [trial(i, curve(i, 1 if i % 2 else 0)) for i in range(6)]
    now = rounds_of(results)
    assert (now.names, now.until, now.losers) == (("000", "002", "004"), 1, ())


def test_losers_are_told_again_until_they_are_written_down():
    results = [trial(i, curve(i, 1), "stopped" if i == 0 else None) for i in range(6)]
    now = rounds_of(results)
    assert (set(now.names), now.until) == ({"004", "005"}, 3)
    assert [loser.name for loser in now.losers] == ["003", "002", "001", "000"]
    assert now.losers[0].reason == "FD 97 at point 1 is not among the best 2 of 6"


def test_trials_that_diverged_do_not_hold_the_others_up():
    results = [trial(0, [], "diverged"), trial(1, [50.0], "diverged"), trial(2, [60.0]), trial(3, [70.0]), trial(4, [80.0])]
    now = rounds_of(results)  # 001 was first at point 1 and diverged after it
    assert (now.names, now.until) == ((), None)
    assert [loser.name for loser in now.losers] == ["002", "003", "004"]


def test_of_few_trials_one_goes_on():
    assert rounds_of([trial(0, [2.0]), trial(1, [1.0])]).names == ("001",)


def test_a_search_that_waits_for_figures_is_not_halved():
    with pytest.raises(ConfigError, match="stopping must be asha or none with optuna"):
        SweepConfig(search="optuna", stopping="halving")
