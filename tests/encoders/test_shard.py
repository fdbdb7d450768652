"""Shards of episodes on a disk: what comes out of whole ones, and what is said of damaged ones. Every picture is accounted for."""

import re
import shutil
from collections import deque
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semantica.data.dataset import StageOutput, read_manifest, read_shard
from semantica.data.location import file_sha256, location
from semantica.data.schemas import EPISODES
from semantica.encoders.encode import encode_episodes
from semantica.encoders.encoder import load_encoder
from semantica.encoders.settings import EncodeConfig, EncoderConfig
from semantica.encoders.shard import DamagedEpisodes, _tables, encode_shard
from semantica.encoders.totals import (
    check_damage,
    counts_of,
    damage_notes,
    finish_encodings,
    finished_shards,
    num_in,
    num_pictures,
    shards_of,
)
from semantica.errors import DataError

SIZES = {"part-00000": ((3, 2, 4), (2,)), "part-00001": ((5, 1), ()), "part-00002": ((2, 2, 2, 2), (3, 1))}
TOTAL = 29


@pytest.fixture(scope="module")
def encoder(checkpoints):
    return load_encoder(EncoderConfig(weights=str(checkpoints["dinov2"]), image_px=28))


def write_episodes(make, folder):
    """An episodes dataset as ingest leaves it: a training and a held-out file for each part."""
    stage = StageOutput(folder, "episodes", {}, {"pages": "0" * 64})
    assert stage.open() is None
    first, counts = 0, {"num_train_images": 0, "num_held_out_images": 0}
    for name, (train, held_out) in SIZES.items():
        tables = {"": make.episodes(train, first=first), "held_out": make.episodes(held_out, first=first + 500)}
        stats = {"num_train_images": sum(train), "num_held_out_images": sum(held_out)}
        stage.write_shard(name, tables, stats, rows_per_group=2)
        counts = {key: counts[key] + stats[key] for key in counts}
        first += 100
    stage.finish(counts | {"num_quarantined_blank": 4, "num_quarantined_furniture": 0}, {"pictures": []})
    return folder


@pytest.fixture
def episodes(make, tmp_path):
    return write_episodes(make, tmp_path / "episodes")


def run(episodes, out, encoder, most=1.0, **changes):
    """What the stage does, without Ray."""
    settings = EncodeConfig(**{"batch_size": 4, "rows_per_group": 2} | changes)
    source = read_manifest(episodes, "episodes")
    stage = StageOutput(out, "encodings", {"store_tokens": settings.store_tokens}, {"episodes": source.hash})
    if stage.open() is None:
        done = finished_shards(stage)
        for shard in shards_of(source, ("", "held_out")):
            if shard.name not in done:
                encode_shard(stage, episodes, shard, encoder, settings)
        finish_encodings(stage, source, most)
    return read_manifest(out, "encodings")


def rows(folder, manifest, prefix=""):
    return pa.concat_tables([read_shard(folder, entry) for entry in manifest.shards(prefix)])


def test_the_files_hold_what_the_pure_function_makes_of_each_table(episodes, tmp_path, encoder):
    manifest = run(episodes, tmp_path / "out", encoder)
    source = read_manifest(episodes, "episodes")
    for prefix in ("", "held_out"):
        expected = encode_episodes(rows(episodes, source, prefix), encoder, EncodeConfig(batch_size=4))
        assert rows(tmp_path / "out", manifest, prefix).equals(expected.table)
    assert [entry.row_group_rows for entry in manifest.shards()] == [(2, 1), (2,), (2, 2)]
    assert (manifest.counts["num_train_images"], manifest.counts["num_held_out_images"]) == (23, 6)
    assert manifest.counts["num_episodes"] == 9
    pooled = rows(tmp_path / "out", manifest)["pooled"].combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False)
    mean = pooled.reshape(-1, 16).astype(np.float64).mean(0)
    np.testing.assert_allclose(manifest.facts["corpus_mean"], mean, rtol=1e-12)
    assert damage_notes(manifest) == []
    assert manifest.facts["quarantined"] == {"blank": 4}  # by ingest


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def alien(path):
    path.write_bytes(b"PAR1" + b"x" * (path.stat().st_size - 4))


DAMAGE = {
    truncate: r"expected \d+ bytes, got \d+",
    flip: "expected SHA-256",
    alien: "expected SHA-256",
    lambda path: path.unlink(): "not readable",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_left_out_whole_and_its_pictures_are_counted(episodes, tmp_path, encoder, damage):
    whole = run(episodes, tmp_path / "whole", encoder)
    damage(episodes / "part-00001.parquet")
    manifest = run(episodes, tmp_path / "out", encoder)
    assert (manifest.counts["num_damaged_shards"], manifest.counts["num_damaged_images"]) == (1, 6)
    assert num_pictures(manifest.counts) == TOTAL
    (damaged,) = manifest.facts["damaged"]
    assert (damaged["path"], damaged["num_images"]) == ("part-00001.parquet", 6)
    assert manifest.facts["quarantined"] == {"blank": 4, "in_damaged_files": 6}
    assert re.search(DAMAGE[damage], damaged["reason"])
    assert rows(tmp_path / "out", manifest, "quarantine").to_pylist() == [
        {"page_url": "part-00001.parquet", "url": "", "reason": "damaged_file", "detail": damaged["reason"]}
    ]
    others = [
        table for entry in whole.shards() if entry.path != "part-00001.parquet" for table in [read_shard(tmp_path / "whole", entry)]
    ]
    assert rows(tmp_path / "out", manifest).equals(pa.concat_tables(others))
    assert rows(tmp_path / "out", manifest, "held_out").equals(rows(tmp_path / "whole", whole, "held_out"))
    (note,) = damage_notes(manifest)
    assert "6 pictures in 1 damaged files" in note
    assert "part-00001.parquet" in note


def test_a_file_of_another_format_that_the_manifest_names_is_left_out_whole(episodes, tmp_path, encoder):
    """Nothing changed on the disk: the manifest itself lists a Parquet file of something else."""
    path = episodes / "held_out" / "part-00002.parquet"
    pq.write_table(pa.table({"episode_id": ["a"], "price": [3]}), path)
    source = read_manifest(episodes, "episodes")
    shard = shards_of(source, ("", "held_out"))[2]
    entry = replace(shard.entries["held_out"], num_bytes=path.stat().st_size, sha256=file_sha256(path))
    stage = StageOutput(tmp_path / "out", "encodings", {}, {})
    assert stage.open() is None
    shard = replace(shard, entries={**shard.entries, "held_out": entry})
    stats = encode_shard(stage, episodes, shard, encoder, EncodeConfig(batch_size=4))
    assert "not a Parquet file of episodes" in stats["damaged"]["held_out"]["reason"]
    assert stats["damaged"]["held_out"]["num_images"] == 4
    assert stats["splits"].keys() == {""}
    assert stats["splits"][""]["num_images"] == 8
    assert pq.read_table(tmp_path / "out" / "part-00002.parquet").num_rows == 4
    assert pq.read_table(tmp_path / "out" / "held_out" / "part-00002.parquet").num_rows == 0


@pytest.mark.slow
def test_a_row_group_that_arrow_cannot_read_at_once_is_read_whole(make, tmp_path):
    """Made elsewhere: one row group with 2.1 GiB of pictures in a column, above the 2 GiB that Arrow reads of a nested one."""
    page = make.episodes((10,)).to_pylist()
    for image in page[0]["images"]:
        image["bytes"] = bytes(2**22)
    table = pa.Table.from_pylist(page, schema=EPISODES)
    path = tmp_path / "part.parquet"
    with pq.ParquetWriter(path, EPISODES, compression="zstd", use_dictionary=False, write_statistics=False) as writer:
        writer.write_table(pa.concat_tables([table] * 54), row_group_size=54)
    assert pq.read_metadata(path).num_row_groups == 1
    with pytest.raises(pa.ArrowNotImplementedError, match="chunked array"), pq.ParquetFile(path) as file:
        file.read_row_group(0)
    order = deque()
    read = 0
    for part in _tables({"": path}, 64, 0, order):
        assert part.equals(table)  # a page of 40 MiB is a table of its own
        read += part.num_rows
    assert read == len(order) == 54


@pytest.mark.parametrize("kind", [pa.int64(), pa.list_(pa.int64())])
def test_a_column_that_cannot_become_pictures_is_damage(make, tmp_path, kind):
    table = make.episodes((2, 1))
    path = tmp_path / "part.parquet"
    column = pa.array([[1], [2]] if pa.types.is_list(kind) else [1, 2], kind)
    pq.write_table(table.set_column(3, "images", column), path)
    with pytest.raises(DamagedEpisodes, match="not a Parquet file of episodes"):
        next(_tables({"": path}, 64, 0, deque()))


def test_tables_on_their_way_are_bounded_by_pictures_and_their_encodings(make, tmp_path):
    path = tmp_path / "part.parquet"
    sizes = (3, 2, 9, 0, 1, 1, 1, 1, 4)
    pq.write_table(make.episodes(sizes), path)
    for image_bytes, expected in ((2**22, [2, 1, 5, 1]), (0, [9])):  # four pictures to a table, or all of them
        order = deque()
        tables = list(_tables({"": path}, 64, image_bytes, order))
        assert [table.num_rows for table in tables] == expected
        assert pa.concat_tables(tables).equals(make.episodes(sizes))
        assert list(order) == [""] * len(expected)
    assert [table.num_rows for table in _tables({"": path}, 4, 0, deque())] == [4, 4, 1]


def test_many_pictures_a_page_end_row_groups_early_and_change_no_encoding(episodes, tmp_path, encoder, monkeypatch):
    whole = run(episodes, tmp_path / "whole", encoder, rows_per_group=64)
    assert [entry.row_group_rows for entry in whole.shards()] == [(3,), (2,), (4,)]
    monkeypatch.setattr("semantica.encoders.shard._TABLE_BYTES", 2000)
    monkeypatch.setattr("semantica.data.shard_writer.MAX_GROUP_BYTES", 4000)  # a picture and its encoding have about 1 KB
    cut = run(episodes, tmp_path / "cut", encoder, rows_per_group=64)
    assert [entry.row_group_rows for entry in cut.shards()] == [(2, 1), (1, 1), (2, 2)]
    for prefix in ("", "held_out", "quarantine"):
        assert rows(tmp_path / "cut", cut, prefix).equals(rows(tmp_path / "whole", whole, prefix))
    assert cut.counts == whole.counts
    np.testing.assert_allclose(cut.facts["corpus_mean"], whole.facts["corpus_mean"], rtol=1e-12)


def test_too_much_damage_ends_the_job_with_the_reason_and_a_restored_file_mends_it(episodes, tmp_path, encoder):
    kept = tmp_path / "kept.parquet"
    shutil.copy(episodes / "part-00000.parquet", kept)
    truncate(episodes / "part-00000.parquet")
    with pytest.raises(DataError) as caught:
        run(episodes, tmp_path / "out", encoder, most=0.3)
    message = str(caught.value)
    assert "9 of 29 pictures are lost (9 in 1 damaged files, 0 undecodable; the first part-00000.parquet: expected" in message
    assert "more than max_damaged_share = 0.3 allows" in message
    assert not (tmp_path / "out" / "manifest.json").exists()
    untouched = (tmp_path / "out" / "part-00001.parquet").stat().st_mtime_ns
    shutil.copy(kept, episodes / "part-00000.parquet")
    again = run(episodes, tmp_path / "out", encoder, most=0.0)
    assert again.counts["num_damaged_images"] == 0
    assert again.hash == run(episodes, tmp_path / "fresh", encoder).hash
    assert (tmp_path / "out" / "part-00001.parquet").stat().st_mtime_ns == untouched


def test_the_limit_is_a_share_of_all_pictures():
    counts = {"num_damaged_images": 3, "num_undecodable_images": 2, "num_damaged_shards": 1}
    check_damage(counts, 100, 0.05)
    with pytest.raises(DataError, match="5 of 99 pictures are lost"):
        check_damage(counts, 99, 0.05)


def test_without_the_receipts_of_ingest_the_lost_pictures_are_those_that_are_missing(episodes, tmp_path, encoder):
    truncate(episodes / "part-00001.parquet")
    shutil.rmtree(episodes / "_shards")
    manifest = run(episodes, tmp_path / "out", encoder)
    assert manifest.counts["num_damaged_images"] == 6


def test_undecodable_pictures_are_counted_and_listed(make, tmp_path, encoder):
    table = make.episodes((3, 1)).to_pylist()
    table[0]["images"][1]["bytes"] = b"nothing"
    table[1]["images"][0]["bytes"] = b"nothing"
    stage = StageOutput(tmp_path / "episodes", "episodes", {}, {})
    assert stage.open() is None
    stats = {"num_train_images": 4, "num_held_out_images": 0}
    stage.write_shard("part-00000", {"": pa.Table.from_pylist(table, schema=make.episodes(()).schema)}, stats)
    stage.finish(stats, {"pictures": []})
    manifest = run(tmp_path / "episodes", tmp_path / "out", encoder)
    assert manifest.counts["num_undecodable_images"] == rows(tmp_path / "out", manifest, "quarantine").num_rows == 2
    assert (manifest.counts["num_episodes"], manifest.counts["num_episodes_lost"], manifest.counts["num_train_images"]) == (1, 1, 2)
    assert num_pictures(manifest.counts) == num_in(read_manifest(tmp_path / "episodes", "episodes")) == 4
    assert "2 stored pictures do not decode" in damage_notes(manifest)[0]


def test_shards_of_different_weights_under_one_name_are_refused(episodes, tmp_path, encoder, checkpoints):
    run(episodes, tmp_path / "out", encoder)
    (tmp_path / "out" / "manifest.json").unlink()
    next((tmp_path / "out" / "_shards").glob("part-00001.*")).unlink()
    other = load_encoder(EncoderConfig(weights=str(checkpoints["registers"]), image_px=28))
    with pytest.raises(DataError, match="made by different weights under one name"):
        run(episodes, tmp_path / "out", other)


def test_an_object_store_gives_the_same_files(make, episodes, tmp_path, encoder):
    remote = location("memory://encode-test/episodes")
    for path in episodes.rglob("*"):
        if path.is_file():
            target = remote / str(path.relative_to(episodes))
            target.fs.pipe_file(target.path, path.read_bytes())
    local, there = run(episodes, tmp_path / "out", encoder), run(remote, location("memory://encode-test/out"), encoder)
    assert there.files == local.files
    assert there.hash == local.hash


def test_the_counts_of_receipts_add_up():
    split = {"num_episodes": 2, "num_images": 5, "num_undecodable": 1, "num_episodes_lost": 1, "pooled_sum": [0.0]}
    counts = counts_of({"splits": {"": split}, "damaged": {"held_out": {"path": "p", "reason": "r", "num_images": 7}}})
    assert num_pictures(counts) == 13
    assert counts["num_damaged_shards"] == 1
