import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from selectolax.lexbor import LexborHTMLParser

from semantica.config import from_args, read_yaml, to_dict
from semantica.config.door import _over_defaults
from semantica.presets import preset
from semantica.report.page import render, to_json
from semantica.report.pictures import grid_png
from semantica.report.written import Protocol
from semantica.sweeps.points import HeldOut
from semantica.sweeps.report import PANELS, best_yaml, lines_of, panel_curve, sweep_report
from semantica.sweeps.results import figure_path, trial_folder
from semantica.sweeps.settings import SweepConfig
from semantica.sweeps.space import Swept

BY_TITLE = {panel.title: panel for panel in PANELS}


@pytest.fixture
def grid(made):
    """A 2 x 2 x 2 grid: no patching, the higher rate and the band each take 1 off the figure; cross-attention was not tried."""
    found = []
    for patching, p in (("2x2", 0), ("none", 4)):
        for rate, r in ((1e-3, 0), (2e-3, 2)):
            for low, b in ((0.3, 1), (-1.0, 0)):
                high = 0.9 if low == 0.3 else 1.0
                final = 20.0 - p - r - b
                settings = {"patching": patching, "learning_rate": rate, "band_low": low, "band_high": high}
                found.append(made(len(found), [final + 9, final + 6, final + 3, final], **settings))
    return found


def test_panels_hold_the_other_settings_at_the_best_trials(grid):
    best = min(grid, key=lambda result: result.final)
    lines = lines_of(BY_TITLE["Patching × learning rate"], grid, best)
    assert set(lines) == {"2x2, lr 0.001", "2x2, lr 0.002", "none, lr 0.001", "none, lr 0.002"}
    assert {result.settings["band_low"] for result in lines.values()} == {0.3}
    assert [lines[name].final for name in ("2x2, lr 0.001", "none, lr 0.002")] == [19.0, 13.0]
    bands = lines_of(BY_TITLE["Band"], grid, best)
    assert {name: result.final for name, result in bands.items()} == {"0.3 to 0.9": 13.0, "-1 to 1": 14.0}


def test_a_panel_with_one_value_says_so_and_others_do_not(grid):
    best = min(grid, key=lambda result: result.final)
    captions = {panel.title: panel_curve(panel, grid, best, "FD", Protocol()).caption for panel in PANELS}
    assert "Nothing is compared here: only a, film has figures." in captions["Encoder × conditioning"]
    assert not any("Nothing is compared" in captions[title] for title in ("Band", "Patching × learning rate"))


def test_a_line_of_another_setting_is_marked(made):
    best = made(0, [9, 8, 7, 6])
    other = made(1, [9, 8, 7, 6.5], band_low=-1.0, band_high=1.0, learning_rate=5e-3)
    curve = panel_curve(BY_TITLE["Band"], [best, other], best, "FD", Protocol())
    assert set(curve.series) == {"0.3 to 0.9", "-1 to 1 *"}
    assert "*: no trial had the best trial's other settings; this one differs in learning_rate (-1 to 1 *)." in curve.caption


def test_of_several_the_one_that_came_furthest_is_shown(made):
    best = made(0, [9, 8, 7, 6])
    stopped, whole = made(1, [2.0], conditioning="both"), made(2, [9, 8, 7, 8], conditioning="both")
    lines = lines_of(BY_TITLE["Encoder × conditioning"], [best, stopped, whole], best)
    assert lines["a, both"].index == 2


def test_the_page_shows_three_panels_a_row_a_trial_and_the_winners_file(grid, tmp_path):
    held_out = HeldOut(
        ("x", "y"), 100, "0" * 64,
        {"name": "encoder", "title": "numbers <b>", "figure": "FD (encoder)", "weights_sha256": "0", "resize": "none", "dim": 8},
    )  # fmt: skip
    held_out.keep(tmp_path / "held_out.json")
    trials = [*grid, replace(grid[0], index=8, name="008", ended="diverged", figures=(), is_trained=False)]
    for result in trials:
        path = figure_path(trial_folder(tmp_path, result.name), max(1, result.reached)).with_suffix(".png")
        path.parent.mkdir(parents=True)
        path.write_bytes(grid_png([[np.zeros((8, 8, 3), np.uint8)] * 2]))
    tiny = preset("tiny")
    swept = Swept(train=tiny.train, band=tiny.band)
    best = min(grid, key=lambda result: result.final)
    report = sweep_report(tmp_path, trials, best, SweepConfig(), swept, "train: {}", "semantica sweep")
    page = render(report)
    tree = LexborHTMLParser(page)
    titles = [node.text() for node in tree.css(".charts h3")]
    assert titles == ["Encoder × conditioning", "Band", "Patching × learning rate"]
    assert len(tree.css(".charts svg")) == 3
    trials_table = next(table for table in report.tables if table.title == "Trials")
    assert trials_table.rows[0][0] == best.name
    assert len(trials_table.rows) == 9
    assert [row[7] for row in trials_table.rows].count("diverged") == 1
    assert "<b>" not in page.replace("numbers &lt;b&gt;", "")
    values = to_json(report)
    assert values["best_frechet"] == best.final
    assert values["share_of_grid"] == pytest.approx(8 / 9)
    ranks = next(table for table in values["tables"] if table["title"].startswith("Do early figures"))
    assert [row[2] for row in ranks["rows"]] == pytest.approx([1.0, 1.0, 1.0])
    assert json.dumps(values)


def test_the_winners_file_is_read_by_jobs_train_as_it_was_written(made, tmp_path):
    from semantica.jobs.train import TrainJob

    tiny = preset("tiny")
    swept = Swept(train=replace(tiny.train, seed=7), band=tiny.band)
    where = '/data/a "b" #c: d/encodings'
    text = best_yaml(swept, where, tmp_path / "selection's", made(0, [4, 3, 2, 1]))
    path = tmp_path / "best.yaml"
    path.write_text(text)
    assert yaml.safe_load(text)["encodings"] == where
    base = preset("base").train  # everything is in the file: no other default shows through
    values = _over_defaults(TrainJob, read_yaml(path), {"train": base})
    assert values["train"] == swept.train
    job = from_args(TrainJob, ["--config", str(path), "--out", "x"], prog="", description="", defaults={"train": base})
    assert (job.encodings, job.selection, to_dict(job.train)) == (where, str(tmp_path / "selection's"), to_dict(swept.train))
