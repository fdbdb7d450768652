"""Which folder is the checkpoint: every command takes a checkpoint, an output of train or a run's folder alike."""

import pytest

from semantica.errors import DataError
from semantica.training.checkpoint import CONFIG, checkpoint_folder, checkpoint_folders


def checkpoint(folder):
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text("{}")
    return folder


def test_the_checkpoint_of_a_run_is_found_from_each_folder_above_it(tmp_path):
    steps = [checkpoint(tmp_path / "checkpoint" / "checkpoints" / f"step-{step:09d}") for step in (5, 10)]
    model = checkpoint(tmp_path / "checkpoint" / "model")
    for place in (tmp_path, tmp_path / "checkpoint", model):
        assert checkpoint_folder(place) == model
    assert checkpoint_folders(tmp_path) == [*steps, model]
    assert checkpoint_folder(tmp_path / "checkpoint" / "checkpoints") == steps[-1]
    assert checkpoint_folder(steps[0]) == steps[0]


def test_the_newest_checkpoint_stands_for_a_training_that_is_not_finished(tmp_path):
    steps = [checkpoint(tmp_path / "checkpoints" / f"step-{step:09d}") for step in (10, 5)]
    assert checkpoint_folder(tmp_path) == steps[0]


def test_a_folder_without_a_checkpoint_is_refused_by_its_name(tmp_path):
    with pytest.raises(DataError, match=rf"checkpoint: {tmp_path} must be a checkpoint, the output of .* or a folder with one"):
        checkpoint_folder(tmp_path)
