"""The journal of a training: whole after a kill, each figure once, whatever tracking server the starts of a training went to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

from semantica.distributed.control import Control
from semantica.distributed.reports import HISTORY, JOURNAL, Recorder, Report, keep_history, open_journal, remove_journal, reporting
from semantica.evaluation.of_training import levels_svg
from semantica.tracking import Place, Run, start_run


def history(folder: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in json.loads((folder / HISTORY).read_text())]


def said(journal: Run, *steps: int, **more: float) -> None:
    recorder = Recorder(journal, Run())
    for step in steps:
        recorder.put(Report(step, {"loss": float(step), "num_skipped": 0, **more}))
    journal.close()


def test_the_history_is_whole_after_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    (tmp_path / HISTORY).write_text(json.dumps([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.5}]))  # of an earlier version
    journal = open_journal(tmp_path, Run())
    said(journal, 2, 3, v_loss_logsnr_0=5.0)
    with (tmp_path / JOURNAL / "journal.jsonl").open("a") as file:
        file.write('{"kind": "metrics", "ste')
    said(open_journal(tmp_path, Run()), 4)
    expected = [{"step": 1, "loss": 1.0}, *({"step": step, "loss": float(step), "num_skipped": 0} for step in (2, 3, 4))]
    assert keep_history(tmp_path, []) == expected
    assert json.loads((tmp_path / HISTORY).read_text()) == expected
    remove_journal(tmp_path)
    assert keep_history(tmp_path, []) == expected
    assert [path.name for path in tmp_path.iterdir()] == [HISTORY]


def test_figures_that_come_again_after_a_restart_are_in_the_journal_once_and_others_in_their_place(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, Run())
    said(journal, 1, 2)
    again = Recorder(journal, Run())
    for step, loss in ((2, 2.0), (3, math.nan), (4, 4.0)):
        again.put(Report(step, {"loss": loss}))
    third = Recorder(journal, Run())
    for step, loss in ((3, math.nan), (4, 4.5)):  # not finite again; and a report over another interval
        third.put(Report(step, {"loss": loss}))
    lines = [json.loads(line) for line in (tmp_path / JOURNAL / "journal.jsonl").read_text().splitlines() if line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert [entry["step"] for entry in keep_history(tmp_path, [])] == [1, 2, 3, 4]
    assert keep_history(tmp_path, [])[-1]["loss"] == 4.5


def test_a_training_that_changes_its_tracking_server_after_a_kill_keeps_its_history(tmp_path: Path) -> None:
    output, token = tmp_path / "out", "a-token"
    output.mkdir()
    place = Place(tmp_path / ".out.tracking", token)
    with start_run(f"sqlite:///{tmp_path}/one.db", "tests", "train", place=place) as run:
        said(open_journal(output, run), 1, 2)
        left = place.runs()  # what a kill at this moment leaves
        assert [one.folder for one in left] == [run.folder]
        keep_history(output, left)
    said(open_journal(output, Run()), 3)  # tracking is off now
    with start_run(f"sqlite:///{tmp_path}/two.db", "tests", "train", place=place) as run:
        journal = open_journal(output, run)
        assert journal == run
        said(journal, 4)
        assert [entry["step"] for entry in keep_history(output, [journal])] == [1, 2, 3, 4]
    assert history(output) == [(step, float(step)) for step in (1, 2, 3, 4)]
    assert place.runs() == []  # all is sent


def test_a_worker_that_does_not_see_the_journals_disk_reports_through_the_driver(tmp_path: Path) -> None:
    control = Control()
    remote = SimpleNamespace(report=SimpleNamespace(remote=control.report))
    report = Report(3, {"loss": 0.5, "num_skipped": 0})
    reporting(Run(str(tmp_path / "not here")), Run(), remote)(report)
    assert control.take_reports() == [report]
    assert control.take_reports() == []
    reporting(open_journal(tmp_path, Run()), Run(), remote)(report)
    assert control.take_reports() == []
    assert [entry["step"] for entry in keep_history(tmp_path, [])] == [3]


def test_the_curve_by_noise_level_is_drawn_from_the_names_of_the_figures() -> None:
    figures = {"loss": 1.0, "loss_logsnr_-2": 0.5, "loss_logsnr_4": 0.25, "v_loss_logsnr_-2": 0.75, "v_loss_logsnr_4": 0.125}
    svg = levels_svg(figures, 7)
    assert svg is not None
    assert "step 7" in svg
    assert levels_svg({"loss": 1.0}, 7) is None
