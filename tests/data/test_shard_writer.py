"""Row groups: where they end, that the rows alone decide it, and that every byte of a file follows from the rows."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semantica.data.dataset import StageOutput, read_shard
from semantica.data.schemas import EPISODES, encodings_schema
from semantica.data.shard_writer import leaves, row_bytes


@pytest.fixture
def written(tmp_path):
    """A function: tables and rows_per_group -> the entry of the file that a writer makes of them."""

    def write(tables, rows_per_group=100):
        stage = StageOutput(tmp_path / f"out{len(list(tmp_path.iterdir()))}", "episodes", {})
        assert stage.open() is None
        with stage.shard_writer("part", rows_per_group) as writer:
            for table in tables:
                writer.write("", table)
        (entry,) = stage.finish({}, {}).files
        assert read_shard(stage.folder, entry).equals(pa.concat_tables(tables))
        return entry

    return write


def values(*sizes):
    """A row of so many bytes for each size."""
    return pa.table({"data": [bytes(size) for size in sizes]})


def parts(table, seed):
    """The table cut at random places, some parts empty."""
    draw = random.Random(seed)
    cuts = sorted(draw.choices(range(table.num_rows + 1), k=draw.randrange(6)))
    return [table.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, table.num_rows], strict=True)]


def test_a_row_group_ends_with_the_row_that_reaches_the_rows_or_the_bytes(written, monkeypatch):
    monkeypatch.setattr("semantica.data.shard_writer.MAX_GROUP_BYTES", 100)
    assert written([values(60, 39, 1, 100, 250, 0, 99, 0, 1)]).row_group_rows == (3, 1, 1, 4)
    assert written([values(60, 39, 1, 100, 250, 0, 99, 0, 1)], 2).row_group_rows == (2, 2, 1, 2, 2)
    assert written([values(*[0] * 7)], 3).row_group_rows == (3, 3, 1)


def test_64_mib_end_a_row_group(written):
    assert written([values(*[2**23] * 17)]).row_group_rows == (8, 8, 1)


@pytest.mark.parametrize("seed", range(8))
def test_the_file_does_not_depend_on_the_tables_that_the_rows_came_in(make, written, monkeypatch, seed):
    monkeypatch.setattr("semantica.data.shard_writer.MAX_GROUP_BYTES", 5000)
    table = make.episodes((3, 0, 1, 4, 2, 9, 0, 0, 1, 1, 2, 3))
    whole = written([table], 5)
    assert len(set(whole.row_group_rows)) > 1
    assert written(parts(table, seed), 5) == whole
    assert written([table.slice(i, 1) for i in range(12)], 5) == whole
    assert written([pa.concat_tables(parts(table, seed))], 5) == whole


def test_the_bytes_of_a_row_are_those_of_its_values(make):
    table = make.episodes((2, 0, 1))
    expected = [
        sum(len(row[name]) for name in ("episode_id", "page_url", "source"))
        + sum(len(i["image_id"]) + len(i["url"]) + len(i["bytes"]) + 8 for i in row["images"])
        for row in table.to_pylist()
    ]
    assert row_bytes(table).tolist() == expected
    assert row_bytes(table.slice(1)).tolist() == expected[1:]
    kind = encodings_schema(4, 3, 5).field("tokens").type
    tokens = pa.chunked_array([pa.array([[bytes(30)] * n for n in sizes], kind) for sizes in ((2, 0), (), (1, 5))])
    assert row_bytes(pa.table({"tokens": tokens[1:]})).tolist() == [0, 30, 150]
    assert row_bytes(EPISODES.empty_table()).tolist() == []


def test_missing_values_have_no_bytes_of_their_own():
    table = pa.table({"text": ["ab", None], "list": pa.array([None, [1, 2]], pa.list_(pa.int32())), "number": [None, 1.5]})
    assert row_bytes(table).tolist() == [2 + 0 + 8, 0 + 8 + 8]
    pairs = pa.table({"pair": pa.array([["a", "bc"], ["", "d"]], pa.list_(pa.string(), 2)), "flag": [True, None]})
    assert row_bytes(pairs).tolist() == [4, 2]


def test_a_group_ended_by_hand_and_a_group_written_whole_are_groups_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("semantica.data.shard_writer.MAX_GROUP_BYTES", 100)
    stage = StageOutput(tmp_path / "out", "scores", {})
    stage.open()
    with stage.shard_writer("part", 4) as writer:
        writer.end_group("")  # of a file that has no row yet: nothing
        writer.write("", values(1, 1))
        writer.end_group("")
        writer.end_group("")
        writer.write("", values(1))
        writer.write_group("", values(90, 90, 90, 90, 90))
        writer.write("", values(50, 49))
        writer.write("", values(1, 1))
    (entry,) = stage.finish({}, {}).files
    assert entry.row_group_rows == (2, 1, 5, 3, 1)
    sizes = [len(data) for data in read_shard(stage.folder, entry)["data"].to_pylist()]
    np.testing.assert_array_equal(sizes, [1, 1, 1, *[90] * 5, 50, 49, 1, 1])


def test_names_are_compressed_but_not_pictures_embeddings_and_tokens(tmp_path):
    image = {"image_id": "a", "url": "u", "bytes": b"jpeg", "width": 1, "height": 1}
    row = {"episode_id": "e", "page_url": "p", "source": "s", "images": [image], "pooled": [np.zeros(4, np.float16)]}
    schema = encodings_schema(4, 2, 3)
    stage = StageOutput(tmp_path / "out", "encodings", {})
    stage.open()
    with stage.shard_writer("part", 100) as writer:
        writer.write("", pa.Table.from_pylist([row | {"tokens": [bytes(12)]}], schema))
    group = pq.ParquetFile(tmp_path / "out" / "part.parquet").metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    assert {column.path_in_schema: column.compression != "UNCOMPRESSED" for column in columns} == dict(leaves(schema))
    assert [column.path_in_schema for column in columns if column.compression == "UNCOMPRESSED"] == [
        "images.list.element.bytes",
        "pooled.list.element.list.element",
        "tokens.list.element",
    ]
