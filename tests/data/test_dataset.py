"""A stage's folder: shown whole or not at all, finished by running it again, never mixed and never deleted by mistake."""

import dataclasses
import hashlib
import json
import shutil

import pyarrow as pa
import pytest

from semantica.config import added, config, free
from semantica.data.dataset import MANIFEST, StageOutput, read_manifest, read_shard
from semantica.data.location import file_sha256
from semantica.errors import DataError

CONFIG = {"image": {"side": 64}, "seed": 0}


def table(*values):
    return pa.table({"value": pa.array(values, pa.int64())})


def output(folder, config=CONFIG, kind="episodes", inputs=None):
    return StageOutput(folder, kind, config, inputs or {"pages": "abc"})


def filled(folder, names=("a", "b"), **kwargs):
    stage = output(folder, **kwargs)
    stage.open()
    for name in names:
        stage.write_shard(name, {"": table(1, 2, 3), "held_out": table(4)}, {"rows": 3}, rows_per_group=2)
    return stage


def finished(folder, **kwargs):
    stage = filled(folder, **kwargs)
    return stage, stage.finish({"num": 6}, {"fact": [1.5]})


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_was_written_is_read_back_with_its_size_hash_and_row_groups(tmp_path):
    stage, manifest = finished(tmp_path / "d")
    assert read_manifest(stage.folder, "episodes") == manifest
    assert [e.path for e in manifest.shards()] == ["a.parquet", "b.parquet"]
    assert [e.path for e in manifest.shards("held_out")] == ["held_out/a.parquet", "held_out/b.parquet"]
    for entry in manifest.files:
        path = stage.folder / entry.path
        assert (path.stat().st_size, file_sha256(path)) == (entry.num_bytes, entry.sha256)
    entry = manifest.shards()[0]
    assert (entry.row_group_rows, entry.num_rows) == ((2, 1), 3)
    assert read_shard(stage.folder, entry) == table(1, 2, 3)
    assert (manifest.counts, manifest.facts) == ({"num": 6}, {"fact": [1.5]})


def test_a_folder_without_a_manifest_is_never_read_as_data(tmp_path):
    stage = filled(tmp_path / "d")
    with pytest.raises(DataError, match=r"has no manifest\.json, so it is not finished; run semantica ingest again"):
        read_manifest(stage.folder, "episodes")
    with pytest.raises(DataError, match=r"no folder .*none; run semantica ingest first"):
        read_manifest(tmp_path / "none", "episodes")


def test_a_shard_is_there_whole_or_not_at_all(tmp_path):
    stage = output(tmp_path / "d")
    stage.open()
    assert not stage.has_shard("a")
    with pytest.raises(TypeError):  # the receipt cannot be written: as good as a crash between data and receipt
        stage.write_shard("a", {"": table(1)}, {"rows": {1, 2}})
    assert not stage.has_shard("a")
    assert list(stage.receipts()) == []
    assert stage.finish({}, {}).files == ()
    stage.write_shard("a", {"": table(5)}, {"rows": 1})
    assert stage.has_shard("a")
    assert list(stage.receipts()) == [("a", {"rows": 1})]
    assert [e.path for e in stage.finish({}, {}).files] == ["a.parquet"]
    assert not list(stage.folder.rglob("*.partial"))


def test_a_second_run_finishes_the_shards_without_a_receipt_and_repeats_none(tmp_path):
    filled(tmp_path / "d", names=("a",))
    before = content(tmp_path / "d")
    again = output(tmp_path / "d")
    assert again.open() is None
    assert [name for name in ("a", "b") if not again.has_shard(name)] == ["b"]
    again.write_shard("b", {"": table(1, 2, 3), "held_out": table(4)}, {"rows": 3}, rows_per_group=2)
    whole = again.finish({"num": 6}, {"fact": [1.5]})
    assert before.items() <= content(tmp_path / "d").items()
    assert whole.hash == finished(tmp_path / "uninterrupted")[1].hash


def test_finished_work_is_recognised(tmp_path):
    stage, manifest = finished(tmp_path / "d")
    assert output(stage.folder).open() == manifest


def test_equal_content_has_an_equal_hash_wherever_and_in_whatever_order_it_was_made(tmp_path):
    first = finished(tmp_path / "one")[1]
    second = finished(tmp_path / "elsewhere" / "two", names=("b", "a"))[1]
    assert first.hash == second.hash
    shutil.move(tmp_path / "one", tmp_path / "moved")
    assert read_manifest(tmp_path / "moved", "episodes").hash == first.hash


@pytest.mark.parametrize(
    "change",
    [{"config": {**CONFIG, "seed": 1}}, {"inputs": {"pages": "abd"}}, {"kind": "encodings"}, {"names": ("a",)}],
)
def test_other_content_has_another_hash(tmp_path, change):
    assert finished(tmp_path / "one")[1].hash != finished(tmp_path / "two", **change)[1].hash


def test_one_changed_value_has_another_hash(tmp_path):
    hashes = set()
    for value in (1, 2):
        stage = output(tmp_path / str(value))
        stage.open()
        stage.write_shard("a", {"": table(value)}, {})
        hashes.add(stage.finish({}, {}).hash)
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": {"image": {"side": 32}, "seed": 0}}, "image.side: was 64, now 32"),
        ({"config": {"image": {"side": 64}, "seed": 0, "more": True}}, "more: was null, now true"),
        ({"inputs": {"pages": "other"}}, 'inputs.pages: was "abc", now "other"'),
        ({"kind": "encodings"}, 'kind: was "episodes", now "encodings"'),
    ],
)
def test_another_plan_is_refused_with_the_field_and_fresh_replaces_it(tmp_path, change, says):
    stage, _ = finished(tmp_path / "d")
    before = content(stage.folder)
    other = output(stage.folder, **change)
    with pytest.raises(DataError) as caught:
        other.open()
    assert says in str(caught.value)
    assert "--fresh" in str(caught.value)
    assert content(stage.folder) == before
    assert other.open(fresh=True) is None
    assert [p.name for p in stage.folder.iterdir()] == ["_plan.json"]
    assert other.open() is None


def test_fresh_keeps_what_the_same_plan_has_made(tmp_path):
    stage, manifest = finished(tmp_path / "d")
    assert output(stage.folder).open(fresh=True) == manifest
    assert stage.has_shard("a")


@pytest.mark.parametrize("fresh", [False, True])
def test_a_foreign_folder_is_refused_and_keeps_every_file(tmp_path, fresh):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"dear")
    with pytest.raises(DataError, match="is not empty and was not made by this stage"):
        output(folder).open(fresh=fresh)
    assert content(folder) == {"holiday.jpg": b"dear"}


def test_an_empty_folder_may_be_filled(tmp_path):
    assert output(tmp_path).open() is None


def test_a_damaged_plan_is_refused_by_name_and_fresh_replaces_it(tmp_path):
    stage, _ = finished(tmp_path / "d")
    (stage.folder / "_plan.json").write_text("{")
    with pytest.raises(DataError, match="has a damaged plan"):
        output(stage.folder).open()
    assert output(stage.folder).open(fresh=True) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "null", '{"files": 1}', '{"kind": "episodes", "files": [{"path": "a"}]}', "\x00\x01"]
)
def test_a_damaged_manifest_is_refused_by_its_path(tmp_path, text):
    stage, _ = finished(tmp_path / "d")
    (stage.folder / MANIFEST).write_text(text)
    with pytest.raises(DataError) as caught:
        read_manifest(stage.folder, "episodes")
    assert f"{stage.folder / MANIFEST} is damaged" in str(caught.value)


def test_another_kind_and_another_schema_version_are_refused(tmp_path):
    stage, manifest = finished(tmp_path / "d")
    with pytest.raises(DataError, match="holds episodes, expected encodings"):
        read_manifest(stage.folder, "encodings")
    values = {**dataclasses.asdict(manifest), "schema_version": 999}
    (stage.folder / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(DataError, match="schema version 999, expected 2"):
        read_manifest(stage.folder, "episodes")


def test_a_truncated_or_missing_shard_is_refused_by_its_path(tmp_path):
    stage, manifest = finished(tmp_path / "d")
    entry = manifest.shards()[0]
    path = stage.folder / entry.path
    data = path.read_bytes()
    path.write_bytes(data[:-7])
    with pytest.raises(DataError) as caught:
        read_shard(stage.folder, entry)
    assert f"{path}: expected {len(data)} bytes, got {len(data) - 7}" in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.parquet: not readable"):
        read_shard(stage.folder, entry)


def test_a_shard_of_the_right_size_that_is_no_parquet_is_refused_by_its_path(tmp_path):
    stage, manifest = finished(tmp_path / "d")
    entry = manifest.shards()[0]
    for junk in (bytes(entry.num_bytes), b"PAR1" + bytes(entry.num_bytes - 8) + b"PAR1"):
        (stage.folder / entry.path).write_bytes(junk)
        with pytest.raises(DataError, match=r"a\.parquet: not readable"):
            read_shard(stage.folder, entry)


def test_a_receipt_without_its_file_is_one_sentence(tmp_path):
    stage = StageOutput(tmp_path / "out", "scores", {})
    stage.open()
    stage.write_shard("part-0", {"": pa.table({"x": [1]})}, {})
    (tmp_path / "out" / "part-0.parquet").unlink()
    with pytest.raises(DataError, match="is not what its receipt"):
        stage.finish({}, {})


def test_only_the_columns_asked_for_are_read(tmp_path):
    stage = output(tmp_path / "d")
    stage.open()
    stage.write_shard("a", {"": table(1).append_column("other", pa.array([2]))}, {})
    entry = stage.finish({}, {}).files[0]
    assert read_shard(stage.folder, entry, ["other"]).column_names == ["other"]


def test_extra_files_are_in_the_manifest_with_their_hash(tmp_path):
    stage = output(tmp_path / "d")
    stage.open()
    (stage.folder / "model").mkdir()
    (stage.folder / "model" / "weights").write_bytes(b"w" * 10)
    (entry,) = stage.finish({}, {}, ["model/weights"]).files
    assert (entry.path, entry.num_bytes, entry.num_rows) == ("model/weights", 10, 0)
    assert entry.sha256 == file_sha256(stage.folder / "model" / "weights")


@config
class Settings:
    side: int = 64
    threads: int = free(1)
    added: bool = added(True, before=False)
    num_steps: int = 10


def begun(folder, settings, **kwargs):
    stage = StageOutput(folder, "episodes", settings, {"pages": "abc"}, **kwargs)
    assert stage.open() is None
    return stage


def test_an_output_whose_record_lacks_a_field_is_continued_as_the_code_before_made_it(tmp_path):
    old = filled(tmp_path / "d", names=("a",), config={"side": 64, "num_steps": 10}, inputs={"pages": "abc"})
    plan = json.loads((old.folder / "_plan.json").read_text())
    del plan["free"]  # an older version wrote none
    (old.folder / "_plan.json").write_text(json.dumps(plan, indent=1))
    receipt = next((old.folder / "_shards").iterdir())
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12]
    receipt.rename(receipt.with_name(f"a.{digest}.json"))  # as the older version called it

    again = begun(old.folder, Settings(added=False))
    assert again.shard_names() == {"a"}
    again.write_shard("b", {"": table(2)}, {"rows": 1})
    manifest = again.finish({}, {})
    assert [entry.path for entry in manifest.shards()] == ["a.parquet", "b.parquet"]
    assert StageOutput(old.folder, "episodes", Settings(added=False), {"pages": "abc"}).finished() == manifest
    with pytest.raises(DataError, match="added: was false, now true"):
        StageOutput(old.folder, "episodes", Settings(), {"pages": "abc"}).open()


def test_a_free_field_may_change_between_two_starts_and_shards_are_not_made_again(tmp_path):
    begun(tmp_path / "d", Settings()).write_shard("a", {"": table(1)}, {"rows": 1})
    again = begun(tmp_path / "d", Settings(threads=8))
    assert again.shard_names() == {"a"}
    assert again.changes() == {"threads": 8}
    again.write_shard("b", {"": table(2)}, {"rows": 1})
    manifest = again.finish({}, {})
    assert [entry.path for entry in manifest.shards()] == ["a.parquet", "b.parquet"]
    assert manifest.config == {"side": 64, "threads": 8, "added": True, "num_steps": 10}
    assert [name for name, _ in StageOutput.of(tmp_path / "d", manifest).receipts()] == ["a", "b"]
    for threads in (1, 8, 9):  # done, whatever it is now
        assert StageOutput(tmp_path / "d", "episodes", Settings(threads=threads), {"pages": "abc"}).open(fresh=True) == manifest


def test_all_fields_that_decide_are_named_in_one_message_that_says_what_to_do(tmp_path):
    begun(tmp_path / "d", Settings())
    other = StageOutput(tmp_path / "d", "episodes", Settings(side=32, added=False, threads=9), {"pages": "new"}, {"found": 1})
    with pytest.raises(DataError) as caught:
        other.open()
    assert str(caught.value) == (
        f"episodes: {tmp_path / 'd'} was made with another configuration (side: was 64, now 32; added: was true, now false; "
        'found: was null, now 1; inputs.pages: was "abc", now "new"); set the old values again, choose another --out, or give '
        "--fresh to replace it"
    )


def test_a_field_of_a_newer_version_refuses_unless_it_was_free_there(tmp_path):
    begun(tmp_path / "d", Settings())
    path = tmp_path / "d" / "_plan.json"
    plan = json.loads(path.read_text())
    plan["config"] |= {"watching": {"every": 1}}
    path.write_text(json.dumps(plan | {"free": [*plan["free"], "watching"]}))
    begun(tmp_path / "d", Settings())
    path.write_text(json.dumps(plan))
    with pytest.raises(DataError, match=r"watching: was .*, and this version has no such field\); choose another --out"):
        StageOutput(tmp_path / "d", "episodes", Settings(), {"pages": "abc"}).open()


def test_more_of_the_same_continues_a_finished_output_and_less_than_is_done_is_refused(tmp_path):
    def stage(num_steps, done):
        return StageOutput(
            tmp_path / "d", "episodes", Settings(num_steps=num_steps), {"pages": "abc"}, at_least={"num_steps": done}
        )

    first = stage(10, 0)
    first.open()
    manifest = first.finish({}, {})
    assert stage(10, 10).open() == manifest
    longer = stage(20, 10)
    assert longer.finished() is None
    assert longer.check() is None
    assert (tmp_path / "d" / MANIFEST).exists()  # until the work begins
    assert longer.replaces()
    longer.begin(fresh=True)
    assert not (tmp_path / "d" / MANIFEST).exists()
    assert stage(15, 12).open() is None  # it was to be 20
    says = r"num_steps: 12 are done, now 10\); ask for more num_steps, choose another --out, or give --fresh to replace it"
    with pytest.raises(DataError, match=says):
        stage(10, 12).open()
    assert stage(10, 12).open(fresh=True) is None


def test_an_output_that_is_to_be_replaced_stays_until_the_work_begins(tmp_path):
    stage, manifest = finished(tmp_path / "d")
    before = content(stage.folder)
    other = output(stage.folder, config={**CONFIG, "seed": 1})
    assert other.check(fresh=True) is None
    assert other.replaces()
    assert content(stage.folder) == before
    assert stage.finished() == manifest
    other.begin(fresh=True)
    assert [p.name for p in stage.folder.iterdir()] == ["_plan.json"]
    assert not other.replaces()
