"""Values taken from Parquet's pages are those that Arrow reads, or are left to Arrow; damage is an error or Arrow's to find."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semantica.pairs.pages import half_values
from semantica.pairs.row_groups import RowGroupReader
from semantica.shard_writer import FileEntry

WIDTH = 24
# How ShardWriter writes.
HOUSE = {"compression": "zstd", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}


def lists(sizes, random, kind=None):
    """A column of pages with so many sequences each."""
    values = random.standard_normal((sum(sizes), WIDTH)).astype(np.float16)
    sequences = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), WIDTH)
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, sequences), values


def written(column, **options):
    """The bytes of a Parquet file with this column."""
    stream = io.BytesIO()
    pq.write_table(pa.table({"tokens": column}), stream, **options)
    return bytearray(stream.getvalue())


def read(data, num_values, group=0):
    """half_values of the only column of a file."""
    chunk = pq.read_metadata(io.BytesIO(data)).row_group(group).column(0)
    return half_values(bytes(data[chunk.data_page_offset :][: chunk.total_compressed_size]), chunk, num_values)


def arrow(data, group=0):
    """The values of that column as Arrow reads them."""
    column = pq.ParquetFile(io.BytesIO(data)).read_row_group(group)["tokens"].combine_chunks()
    return column.flatten().flatten().to_numpy(zero_copy_only=False)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=30),
    page_bytes=st.integers(40, 4000),
    compression=st.sampled_from(["zstd", "none", "snappy", "gzip"]),
    checksum=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_values_are_those_that_arrow_reads_bit_for_bit(sizes, page_bytes, compression, checksum, seed):
    column, values = lists(sizes, np.random.default_rng(seed))
    options = HOUSE | {"compression": compression, "write_page_checksum": checksum}
    # Pages as small as asked for: Arrow looks at their size after every batch of so many values only.
    data = written(column, **options, data_page_size=page_bytes, write_batch_size=16)
    found = read(data, values.size)
    assert found is not None
    assert np.array_equal(found.view(np.uint16), values.reshape(-1).view(np.uint16))
    assert np.array_equal(found.view(np.uint16), arrow(data).view(np.uint16))


@pytest.mark.parametrize(
    "options",
    [{"data_page_version": "2.0"}, {"use_dictionary": True}, {"column_encoding": "BYTE_STREAM_SPLIT"}, {"compression": "lz4"}],
    ids=["another version of pages", "a dictionary", "another encoding", "another compression"],
)
def test_pages_of_another_kind_are_left_to_arrow(options):
    column, values = lists([3, 2], np.random.default_rng(0))
    data = written(column, **(HOUSE | options))
    assert read(data, values.size) is None
    assert np.array_equal(arrow(data), values.reshape(-1))


def test_nulls_empty_pages_and_other_numbers_of_values_are_left_to_arrow():
    column, values = lists([3, 0, 2], np.random.default_rng(0))
    assert read(written(column, **HOUSE), values.size) is None
    with_null = pa.array([[[1.0] * WIDTH, None], [[2.0] * WIDTH]], pa.list_(pa.list_(pa.float16(), WIDTH)))
    for expected in (2 * WIDTH, 3 * WIDTH, 2 * WIDTH + 1):
        assert read(written(with_null, **HOUSE), expected) is None
    inner_null = pa.array([[[1.0] * (WIDTH - 1) + [None]]], pa.list_(pa.list_(pa.float16(), WIDTH)))
    assert read(written(inner_null, **HOUSE), WIDTH) is None
    assert read(written(lists([3], np.random.default_rng(0))[0], **HOUSE), 2 * WIDTH) is None
    single = pa.array([[[1.0] * WIDTH]], pa.list_(pa.list_(pa.float32(), WIDTH)))
    assert read(written(single, **HOUSE), WIDTH) is None


def test_a_changed_bit_of_the_column_never_changes_a_value_unseen():
    column, values = lists([4, 3, 5], np.random.default_rng(0))
    data = written(column, **HOUSE, data_page_size=200, write_batch_size=16)
    chunk = pq.read_metadata(io.BytesIO(data)).row_group(0).column(0)
    data = data[chunk.data_page_offset :][: chunk.total_compressed_size]
    expected, errors, left = values.reshape(-1).view(np.uint16), 0, 0
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        try:
            found = half_values(bytes(data), chunk, values.size)
        except (OSError, ValueError):
            errors += 1
        else:
            left += found is None
            assert found is None or np.array_equal(
                found.view(np.uint16), expected
            )  # a bit that says nothing, as of a checksum's id
        data[bit // 8] ^= 1 << bit % 8
    assert errors > 8 * 2 * values.size * 0.8  # nearly all bits are those of values
    assert left > 0


@pytest.mark.parametrize("group", [0, 1, 2])
def test_a_row_group_read_by_pages_is_the_table_that_arrow_reads(tmp_path, make, group):
    from semantica.datasets import read_manifest

    make.encodings(tmp_path / "encodings")
    entry = read_manifest(tmp_path / "encodings", "encodings").shards()[1]
    columns = ["images", "pooled", "tokens"]
    found = RowGroupReader(tmp_path / "encodings", columns, stage="train", made_by="encode").read(entry, group)
    expected = pq.ParquetFile(tmp_path / "encodings" / entry.path).read_row_group(group, columns=columns)
    assert found.select(columns).equals(expected.select(columns))
    assert found.schema.field("tokens") == expected.schema.field("tokens")


def test_a_page_without_pictures_is_read_by_arrow(tmp_path, make):
    make.encodings(tmp_path / "encodings", ((2, 0, 3),), rows_per_group=3)
    from semantica.datasets import read_manifest

    (entry,) = read_manifest(tmp_path / "encodings", "encodings").shards()
    assert isinstance(entry, FileEntry)
    table = RowGroupReader(tmp_path / "encodings", ["images", "tokens"], stage="train", made_by="encode").read(entry, 0)
    assert [len(row) for row in table["tokens"].to_pylist()] == [2, 0, 3]
