"""Local folders and object stores behind one interface: names, ranges, relative paths, datasets."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from upath import UPath

from semantica.data.dataset import StageOutput, read_manifest, read_shard
from semantica.data.durable import write_atomically
from semantica.data.location import file_sha256, follow, is_local, location, read_range, relative, remove_tree
from semantica.errors import ConfigError, DataError


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    """An empty folder, on disk and on an S3 server."""
    if request.param == "local":
        return tmp_path / "data"
    return location(f"{request.getfixturevalue('s3')}/{tmp_path.name}")


def test_a_location_is_absolute_or_a_known_scheme():
    assert location("runs/x") == Path.cwd() / "runs/x"
    assert location("file:///a/b") == Path("/a/b")
    assert is_local(location("x"))
    assert not is_local(location("s3://bucket/x"))
    assert str(location("s3://bucket/x") / "y") == "s3://bucket/x/y"
    with pytest.raises(ConfigError, match="expected a path, s3://"):
        location("http://host/x")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "adlfs", None)
    with pytest.raises(ConfigError, match="pip install adlfs"):
        location("abfs://container/x")


def test_a_range_of_a_file_is_what_is_there_of_it(folder):
    write_atomically(folder / "x", b"0123456789")
    assert read_range(folder / "x", 3, 4) == b"3456"
    assert read_range(folder / "x", 8, 100) == b"89"
    with pytest.raises(FileNotFoundError):
        read_range(folder / "y", 0, 1)


def test_relative_paths_lead_back(folder):
    there, start = folder / "runs" / "scores", folder / "selections" / "a"
    assert relative(there, start) == "../../runs/scores"
    assert str(follow(relative(there, start), start)) == str(there)
    other = location("memory://elsewhere/x")
    assert str(follow(relative(other, start), start)) == str(other)


def test_a_dataset_can_live_in_either_place(folder):
    stage = StageOutput(folder / "out", "scores", {"a": 1})
    table = pa.table({"x": np.arange(10)})
    with stage.held():
        assert stage.open() is None
        with stage.shard_writer("part-0", 4) as writer:
            for start in (0, 3, 5):
                writer.write("", table[start : {0: 3, 3: 5, 5: 10}[start]])
            writer.write("quarantine", table[:0])
            writer.stats = {"rows": 10}
        assert stage.shard_names() == {"part-0"}
        assert list(stage.receipts()) == [("part-0", {"rows": 10})]
        stage.finish({"rows": 10}, {})
    manifest = read_manifest(folder / "out", "scores")
    (entry,) = manifest.shards()
    assert entry.row_group_rows == (4, 4, 2)
    assert entry.sha256 == file_sha256(folder / "out" / "part-0.parquet")
    assert read_shard(folder / "out", entry) == table
    assert read_shard(folder / "out", manifest.shards("quarantine")[0]).num_rows == 0
    assert stage.finished() == manifest
    assert StageOutput(folder / "out", "scores", {"a": 2}).finished() is None
    with pytest.raises(DataError, match="--fresh"):
        StageOutput(folder / "out", "scores", {"a": 2}).open()
    assert StageOutput(folder / "out", "scores", {"a": 2}).open(fresh=True) is None
    remove_tree(folder / "out")
    assert not (folder / "out").exists()


def test_a_shard_whose_writer_fails_leaves_nothing(folder):
    stage = StageOutput(folder / "out", "scores", {})
    stage.open()

    def fail():
        with stage.shard_writer("part-0", 4) as writer:
            writer.write("", pa.table({"x": [1, 2, 3, 4, 5]}))
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="middle"):
        fail()
    assert stage.shard_names() == frozenset()
    assert [p.name for p in (folder / "out").iterdir()] == ["_plan.json"]


def test_locations_travel_to_workers(folder):
    import pickle

    stage = StageOutput(folder / "out", "scores", {})
    stage.open()
    pickle.loads(pickle.dumps(stage)).write_shard("part-0", {"": pa.table({"x": [1]})}, {})  # noqa: S301 - as Ray does
    assert stage.has_shard("part-0")
    assert isinstance(folder, Path | UPath)
