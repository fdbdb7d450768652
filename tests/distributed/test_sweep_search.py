"""What is written down when Ray Tune says that a trial ended. No Ray is started."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from semantica.data.dataset import MANIFEST
from semantica.data.durable import write_atomically
from semantica.distributed.sweep import Progress
from semantica.sweeps.results import TRAINING, Figure, begin, keep_figure, read_result, trial_folder

SETTINGS = {"encoder": "one", "conditioning": "both", "patching": "2x2", "learning_rate": 1e-3, "band_low": 0.3, "band_high": 0.9}


def trial(out: Path, measured: int, heard: int | None) -> SimpleNamespace:
    """A trial of two points: so many of them are on the disk, and Tune has heard of so many."""
    begin(out, 0, "000", {}, SETTINGS, (3, 6), 1.0)
    for point in range(1, measured + 1):
        keep_figure(trial_folder(out, "000"), Figure(point, 3 * point, 10.0 - point, 16, 16, "encoder", None, 1.0))
    return SimpleNamespace(config={"trial": "000"}, last_result={} if heard is None else {"point": heard})


@pytest.mark.parametrize(("measured", "heard", "point"), [(1, 1, 1), (2, 1, 1), (2, 2, 2), (1, None, 1)])
def test_a_stopped_trial_is_stopped_where_the_scheduler_said_even_if_it_was_measured_to_its_end(
    tmp_path: Path, measured: int, heard: int | None, point: int
) -> None:
    ended = trial(tmp_path, measured, heard)
    Progress(tmp_path, 2, 1).on_trial_complete(1, [], ended)
    result = read_result(trial_folder(tmp_path, "000"))
    assert result.status == "stopped"
    assert result.reason == f"FD {10 - point} at point {point} is not among the best so far"


def test_a_trial_that_was_trained_to_its_end_is_finished(tmp_path: Path) -> None:
    ended = trial(tmp_path, 2, 2)
    write_atomically(trial_folder(tmp_path, "000") / TRAINING / MANIFEST, b"{}")
    Progress(tmp_path, 2, 1).on_trial_complete(1, [], ended)
    assert read_result(trial_folder(tmp_path, "000")).status == "finished"


def test_a_trial_that_never_began_to_be_measured_is_left_to_the_next_start(tmp_path: Path) -> None:
    ended = trial(tmp_path, 0, None)
    Progress(tmp_path, 2, 1).on_trial_complete(1, [], ended)
    assert read_result(trial_folder(tmp_path, "000")).status == "unfinished"
