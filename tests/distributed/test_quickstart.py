"""The main job on corpora of every size: small ones are fitted, too small ones refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import SmallRun, draw_pages

from semantica.config import override
from semantica.distributed.pipeline import fit_to_corpus
from semantica.distributed.quickstart import quickstart
from semantica.distributed.runtime import Runtime
from semantica.errors import ConfigError, DataError
from semantica.presets import tiny
from semantica.tracking import TrackingConfig


def test_a_corpus_that_is_large_enough_changes_nothing() -> None:
    assert fit_to_corpus(tiny(), 300, 30, 2) == (tiny(), 2)
    assert fit_to_corpus(tiny(), 300, 30, 3) == (tiny(), 3)  # which semantica train refuses: 3 workers do not divide its 4 lanes


@pytest.mark.parametrize(
    ("num_held_out", "filled", "lanes", "workers", "conditions"), [(20, 29, 4, 2, 10), (300, 3, 2, 2, 48), (4, 1, 1, 1, 2)]
)
def test_a_small_corpus_gets_fewer_lanes_workers_and_conditions(
    num_held_out: int, filled: int, lanes: int, workers: int, conditions: int
) -> None:
    config, num_workers = fit_to_corpus(tiny(), num_held_out, filled, 2)
    assert (config.train.num_lanes, num_workers, config.generate.num_conditions) == (lanes, workers, conditions)


def test_too_few_held_out_pictures_are_refused_before_training() -> None:
    with pytest.raises(DataError, match="3 pictures are held out, at least 4"):
        fit_to_corpus(tiny(), 3, 29, 2)


def test_html_pages_and_the_folder_preset_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use --preset tiny-html"):
        quickstart(tiny(), source="html-docs", root=None, out=tmp_path / "out", runtime=Runtime())


@pytest.mark.ray
def test_one_folder_of_pictures_goes_through_every_stage_and_only_what_changed_is_done_again(
    small_run: SmallRun, tmp_path: Path
) -> None:
    root = draw_pages(tmp_path / "pictures", num_pages=1, num_pictures=24)
    out = tmp_path / "run"
    runtime = override(small_run.runtime, {"tracking": {"uri": "off"}})
    quickstart(small_run.config, source="clip-art", root=root, out=out, runtime=runtime)
    assert (out / "evaluation" / "report.html").exists()
    trained = (out / "checkpoint" / "manifest.json").stat().st_mtime_ns
    other = override(small_run.config, {"evaluate.guidance": 0.0})
    with pytest.raises(DataError, match=r"evaluation .*guidance: was 0\.5, now 0\.0.* --fresh"):
        quickstart(other, source="clip-art", root=root, out=out, runtime=runtime)
    quickstart(other, source="clip-art", root=root, out=out, runtime=override(runtime, {"fresh": True}))
    assert (out / "checkpoint" / "manifest.json").stat().st_mtime_ns == trained


def test_tracking_at_an_address_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    from semantica.tracking import start_run

    with pytest.raises(ConfigError, match=r"tracking\.uri"), start_run("nonsense://x", "e", "n"):
        pass
    assert TrackingConfig().uri == ""
