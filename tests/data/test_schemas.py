"""Tokens as bytes in Arrow: what goes in comes out, whatever Arrow does to the table on the way."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from semantica.data.schemas import encodings_schema, token_column, token_rows

SIZES = (2, 0, 3, 1)
KIND = encodings_schema(4, 3, 5).field("tokens").type


def column():
    values = np.random.default_rng(0).standard_normal((sum(SIZES), 15)).astype(np.float16)
    offsets = np.concatenate([[0], np.cumsum(SIZES)])
    return token_column(values, pa.array(offsets, pa.int32())), np.split(values, offsets[1:-1])


def same(found, expected):
    pairs = zip(found, expected, strict=True)
    return all(np.array_equal(a, b) and a.dtype == np.float16 for a, b in pairs)


def test_tokens_come_back_from_a_file_from_a_slice_and_from_chunks(tmp_path):
    tokens, expected = column()
    assert tokens.type == KIND
    pq.write_table(pa.table({"tokens": tokens}), tmp_path / "tokens.parquet", row_group_size=3)
    assert same(token_rows(pq.read_table(tmp_path / "tokens.parquet")["tokens"]), expected)
    assert same(token_rows(pa.chunked_array([tokens])[1:3]), expected[1:3])
    assert same(
        token_rows(pa.chunked_array([tokens.slice(2), tokens.slice(0, 0), tokens.slice(0, 2)])), expected[2:] + expected[:2]
    )
    taken = pa.table({"tokens": tokens}).take([3, 0])
    assert same(token_rows(taken["tokens"]), [expected[3], expected[0]])


def test_no_rows_and_rows_without_pictures_have_no_tokens():
    assert token_rows(pa.chunked_array([], KIND)) == []
    (found,) = token_rows(pa.chunked_array([pa.array([[]], KIND)]))
    assert found.shape == (0, 15)
