import json

import pytest

from semantica.data.dataset import MANIFEST
from semantica.errors import DataError
from semantica.sweeps.results import Figure, begin, end, figure_path, keep_figure, read_result, read_results, trial_folder

SETTINGS = {"encoder": "a", "conditioning": "film", "patching": "2x2", "learning_rate": 1e-3, "band_low": 0.3, "band_high": 0.9}


def figure(point, frechet, step=10):
    return Figure(
        point=point, step=step * point, frechet=frechet, num_samples=8, num_reference=9, extractor="encoder", seconds=None,
        measuring_seconds=1.0,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    begin(tmp_path, 3, "003-a", {"patching": "2x2"}, SETTINGS, (10, 20), 5.0)
    return trial_folder(tmp_path, "003-a")


def test_a_figure_is_kept_once_whoever_comes_again(folder):
    assert keep_figure(folder, figure(1, 7.0)).frechet == 7.0
    assert keep_figure(folder, figure(1, 8.0)).frechet == 7.0
    assert [f.frechet for f in read_result(folder).figures] == [7.0]
    assert not list(folder.rglob("*.partial"))


def test_a_trial_is_finished_when_its_last_figure_and_its_model_are_there(folder, tmp_path):
    assert (read_result(folder).status, read_result(folder).share) == ("unfinished", 0.0)
    keep_figure(folder, figure(1, 7.0))
    assert (read_result(folder).status, read_result(folder).share) == ("unfinished", 0.5)
    keep_figure(folder, figure(2, 6.0))
    assert (read_result(folder).status, read_result(folder).final) == ("unfinished", 6.0)
    (folder / "training").mkdir()
    (folder / "training" / MANIFEST).write_text("{}")
    (found,) = read_results(tmp_path)
    assert (found.status, found.final, found.share, found.reached) == ("finished", 6.0, 1.0, 2)
    assert (found.index, found.settings, found.drawn, found.steps) == (3, SETTINGS, {"patching": "2x2"}, (10, 20))


def test_how_a_trial_ended_is_written_once(folder):
    keep_figure(folder, figure(1, 7.0))
    end(folder, "stopped", "worse than others")
    end(folder, "diverged", "later")
    assert (read_result(folder).status, read_result(folder).reason) == ("stopped", "worse than others")


def test_trials_come_in_the_order_in_which_they_were_begun(tmp_path):
    for index, name in ((10, "010-b"), (2, "002-z"), (0, "000-q")):
        begin(tmp_path, index, name, {}, SETTINGS, (10,), 1.0)
    assert [result.index for result in read_results(tmp_path)] == [0, 2, 10]
    (tmp_path / "trials" / "not-a-trial").mkdir()
    assert len(read_results(tmp_path)) == 3


@pytest.mark.parametrize("damage", ["", "{", '{"point": 1}', "[]"])
def test_a_damaged_file_is_named(folder, damage):
    keep_figure(folder, figure(1, 7.0))
    figure_path(folder, 1).write_text(damage)
    with pytest.raises(DataError, match=r"^sweep: .*point-01.json is damaged .*; delete .*003-a and run the same command again$"):
        read_result(folder)
    figure_path(folder, 1).unlink()
    (folder / "trial.json").write_text(damage)
    with pytest.raises(DataError, match=r"^sweep: .*trial.json is damaged or missing"):
        read_result(folder)


def test_figures_are_plain_json(folder):
    keep_figure(folder, figure(1, 7.25))
    assert json.loads(figure_path(folder, 1).read_text())["frechet"] == 7.25
