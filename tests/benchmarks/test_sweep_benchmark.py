"""The rows of benchmarks.sweep from recorded sweeps."""

import pytest

from benchmarks.sweep import measured_rows, options, plan_of
from semantica.sweeps.results import Figure, Result
from semantica.sweeps.space import grid

STEPS = (30, 60, 90, 120)


def result(index, curve):
    figures = tuple(
        Figure(point=p, step=STEPS[p - 1], frechet=value, num_samples=96, num_reference=287, extractor="encoder", seconds=1.0,
               measuring_seconds=1.0)
        for p, value in enumerate(curve, 1)
    )  # fmt: skip
    ended = None if len(curve) == 4 else "stopped"
    return Result(
        index=index, name=f"{index:03d}", drawn={}, settings={}, steps=STEPS, flops=1.0, figures=figures, ended=ended, reason="",
        is_trained=ended is None,
    )  # fmt: skip


def test_the_grid_has_twelve_trials_and_asha_the_same():
    given = options([])
    full, asha = plan_of(given, "none"), plan_of(given, "asha")
    assert plan_of(given, "halving").sweep.stopping == "halving"
    assert len(grid(full.sweep.space, ["run"])) == 12
    assert (full.train, full.band, full.sweep.space, full.sweep.measure) == (
        asha.train,
        asha.band,
        asha.sweep.space,
        asha.sweep.measure,
    )


@pytest.mark.parametrize(("found", "holds"), [(0, True), (1, False)])
def test_the_target_holds_when_asha_spent_little_and_found_the_best(found, holds):
    full = [result(index, [40.0 + index, 30.0 + index, 20.0 + index, 10.0 + index]) for index in range(12)]
    asha = [result(index, [f.frechet for f in r.figures][: 4 if index == found else 1]) for index, r in enumerate(full)]
    halved = [result(index, [f.frechet for f in r.figures][: 4 if index == found else 1]) for index, r in enumerate(full)]
    rows = {row.name: row for row in measured_rows(full, asha, halved, options([]))}
    ranks = [row.figure for name, row in rows.items() if name.startswith("rank correlation")]
    assert ranks == pytest.approx([1.0, 1.0, 1.0])
    for name in ("ASHA", "successive halving"):
        (share,) = [row for what, row in rows.items() if what.startswith(f"training FLOPs that {name} spent")]
        assert share.figure == pytest.approx((1 + 11 / 4) / 12)
        assert share.holds is holds
        assert rows[f"rank in the grid of the trial that {name} found"].figure == found + 1
        assert rows[f"figures of {name} that differ from the grid's, of trial and point"].figure == 0
    assert rows["orders in which ASHA finds the grid's best trial"].figure == 1.0  # the ranking never changes
