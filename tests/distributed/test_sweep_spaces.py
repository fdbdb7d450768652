"""A sweep over two encoders and both conditionings, each trial with two workers, searched at random."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from small import SmallRun, random_encoder

from semantica.config import override
from semantica.distributed.encode import encode
from semantica.distributed.pairs import score
from semantica.distributed.sweep import sweep
from semantica.distributed.train import MODEL
from semantica.errors import DataError
from semantica.sweeps.plan import SweepPlan
from semantica.sweeps.results import Result, read_results
from semantica.sweeps.settings import SweepConfig
from semantica.training.checkpoint import open_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.slow]
MEASURE = {"measure.num_points": 2, "measure.num": 16, "measure.sampler.num_steps": 2}


def other_encoder(small_run: SmallRun, base: Path) -> Path:
    """The small run's pictures by an encoder with another width and another number of tokens."""
    weights = random_encoder(base / "encoder", width=48)
    config = override(small_run.config.encode, {"encoder.weights": str(weights), "encoder.image_px": 42})
    encode(config, episodes=small_run.out / "episodes", out=base / "encodings", runtime=small_run.runtime)
    score(encodings=base / "encodings", out=base / "scores", runtime=small_run.runtime)
    return base


def swept(
    small_run: SmallRun, places: dict[str, Path], changes: dict[str, object], out: Path, max_skipped: int = 10
) -> list[Result]:
    plan = SweepPlan(
        encodings={name: str(place / "encodings") for name, place in places.items()},
        scores={name: str(place / "scores") for name, place in places.items()},
        sweep=override(SweepConfig(), {"space.patching": [], "stopping": "none"} | MEASURE | changes),
        band=small_run.config.band,
        train=override(small_run.config.train, {"max_skipped": max_skipped, "optimizer.warmup_steps": 0}),
    )
    runtime = override(small_run.runtime, {"tracking.uri": f"sqlite:///{out.parent}/mlflow.db"})
    sweep(plan, out=out, runtime=runtime)
    return read_results(out)


def test_encoders_and_conditionings_are_combined_and_measured_by_the_first(small_run: SmallRun, tmp_path: Path) -> None:
    places = {"small": small_run.out, "wide": other_encoder(small_run, tmp_path / "wide")}
    kinds = ["cross_attention", "film"]
    results = swept(small_run, places, {"space.conditioning": kinds}, tmp_path / "sweep")
    found = {(result.settings["encoder"], result.settings["conditioning"]) for result in results}
    assert found == set(itertools.product(places, kinds))
    assert {result.status for result in results} == {"finished"}
    for result in results:
        denoiser = open_checkpoint(tmp_path / "sweep" / "trials" / result.name / "training" / MODEL).config.denoiser
        sizes = (denoiser.token_dim, denoiser.num_tokens)
        assert sizes == {"small": (32, 5), "wide": (48, 10)}[str(result.settings["encoder"])]
        assert denoiser.conditioning == result.settings["conditioning"]
    assert len({figure.extractor for result in results for figure in result.figures}) == 1


def test_a_random_search_draws_what_its_seed_says(small_run: SmallRun, tmp_path: Path) -> None:
    changes = {"search": "random", "num_trials": 2, "space.learning_rate_range": [1e-4, 1e-2]}
    first, again = (swept(small_run, {"small": small_run.out}, changes, tmp_path / name / "sweep") for name in ("one", "two"))
    rates = [float(result.settings["learning_rate"]) for result in first]
    assert len(set(rates)) == 2
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert [result.settings for result in again] == [result.settings for result in first]
    assert [result.final for result in again] == pytest.approx([result.final for result in first], rel=1e-3)


def test_successive_halving_goes_on_with_the_best_after_a_pause_and_changes_no_figure(small_run: SmallRun, tmp_path: Path) -> None:
    rates = {"space.learning_rate": [1e-4, 1e-3, 1e-2], "measure.num_points": 3}
    grid, halved = (
        swept(small_run, {"small": small_run.out}, rates | {"stopping": stopping}, tmp_path / stopping / "sweep")
        for stopping in ("none", "halving")
    )
    at_first = {result.name: result.figures[0].frechet for result in grid}
    best = min(at_first, key=lambda name: at_first[name])
    assert {result.name: result.status for result in halved} == {
        name: "finished" if name == best else "stopped" for name in at_first
    }
    for whole, half in zip(grid, halved, strict=True):
        assert len(half.figures) == (3 if half.name == best else 1)
        assert [f.frechet for f in half.figures] == [f.frechet for f in whole.figures][: len(half.figures)]
    loser = next(result for result in halved if result.name != best)
    assert loser.reason.endswith("at point 1 is not among the best 1 of 3")


def test_a_rate_that_diverges_before_it_is_measured_is_told_and_the_others_are_compared(
    small_run: SmallRun, tmp_path: Path
) -> None:
    changes = {"space.learning_rate": [1e-3, 1e30], "measure.num_points": 1}
    good, bad = swept(small_run, {"small": small_run.out}, changes, tmp_path / "sweep", max_skipped=1)
    assert (good.status, bad.status, bad.figures) == ("finished", "diverged", ())
    page = (tmp_path / "sweep" / "sweep.html").read_text()
    assert "1 came to the end, 1 diverged" in page


def test_a_drawn_band_without_pairs_ends_its_trial_alone(small_run: SmallRun, tmp_path: Path) -> None:
    ranges = {"space.band_low_range": [-1.0, -0.99], "space.band_high_range": [-0.98, -0.97]}
    with pytest.raises(
        DataError, match=r"none of 2 trials came to its end; 000-.*: pairs: none of 165 pairs has .*; widen the band"
    ):
        swept(small_run, {"small": small_run.out}, {"search": "random", "num_trials": 2} | ranges, tmp_path / "sweep")
    assert [result.status for result in read_results(tmp_path / "sweep")] == ["failed", "failed"]
