"""What a kill leaves of a stage's folder: begun again, swept away, and never in another run's output."""

import pyarrow as pa
import pytest

from semantica.data.dataset import StageOutput
from semantica.data.location import remove_tree
from semantica.errors import DataError


def test_a_worker_that_outlives_its_driver_leaves_nothing_in_the_next_configurations_output(tmp_path):
    earlier = StageOutput(tmp_path / "out", "scores", {"seed": 1})
    earlier.open()
    earlier.write_shard("part-0", {"": pa.table({"x": [1]})}, {})
    later = StageOutput(tmp_path / "out", "scores", {"seed": 2})
    assert later.open(fresh=True) is None
    with pytest.raises(DataError, match="was replaced by another run while part-1 was made"):
        earlier.write_shard("part-1", {"": pa.table({"x": [1]})}, {})
    assert later.shard_names() == frozenset()
    assert not list((tmp_path / "out").glob("*.parquet"))
    (tmp_path / "out" / "_shards").mkdir()
    (tmp_path / "out" / "_shards" / earlier._receipt("part-2").name).write_text("{}")  # in the moment between look and rename
    assert not later.has_shard("part-2")
    assert list(later.receipts()) == []


@pytest.mark.parametrize("survivors", [1, 2, 3, 4])
def test_a_fresh_start_that_is_killed_while_it_deletes_is_begun_again(tmp_path, monkeypatch, survivors):
    old = StageOutput(tmp_path / "out", "scores", {"seed": 1})
    old.open()
    old.write_shard("part-0", {"": pa.table({"x": [1]}), "quarantine": pa.table({"x": [1]})}, {})
    old.finish({}, {})
    deleted = []

    def killed(step):
        def run(*args, **kwargs):
            deleted.append(args)
            if len(deleted) == survivors:
                raise KeyboardInterrupt
            return step(*args, **kwargs)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "unlink", killed(type(tmp_path).unlink))
        patch.setattr("semantica.data.dataset.remove_tree", killed(remove_tree))
        with pytest.raises(KeyboardInterrupt):
            StageOutput(tmp_path / "out", "scores", {"seed": 2}).open(fresh=True)
    if survivors > 1:
        assert old.finished() is None  # never "already done" with files missing
    new = StageOutput(tmp_path / "out", "scores", {"seed": 2})
    assert new.open(fresh=True) is None
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["_plan.json"]


def test_what_killed_workers_were_writing_is_swept_away_at_the_end(tmp_path):
    stage = StageOutput(tmp_path / "out", "scores", {})
    stage.open()
    (tmp_path / "out" / ".part-9.parquet.77.partial").write_bytes(b"half")
    stage.write_shard("part-0", {"": pa.table({"x": [1]})}, {})
    stage.finish({}, {})
    assert not list((tmp_path / "out").glob(".*"))


def test_a_plan_that_was_killed_while_it_was_written_does_not_block_the_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "._plan.json.77.partial").write_bytes(b"{")
    assert StageOutput(tmp_path / "out", "scores", {}).open() is None


def test_what_killed_workers_were_writing_goes_when_the_output_is_finished_folders_too(tmp_path):
    stage = StageOutput(tmp_path / "out", "sweep", {})
    stage.open()
    saving = tmp_path / "out" / "trials" / "a" / ".step-000000030.partial"
    saving.mkdir(parents=True)
    (saving / "model.safetensors").write_bytes(b"half")
    (tmp_path / "out" / ".b.parquet.partial").write_bytes(b"half")
    stage.finish({}, {})
    assert not list((tmp_path / "out").rglob(".*.partial"))
