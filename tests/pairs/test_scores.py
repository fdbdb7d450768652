"""Scores: the cosine of every pair, in order, plain and with the mean subtracted."""

import numpy as np
import pyarrow as pa
import pytest

from semantica.datasets import read_manifest, read_shard
from semantica.pairs.scores import cosine_upper, pooled_rows, score_table, square
from semantica.schemas import SCORES


def vectors(n, d=8, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 9])
def test_cosines_are_numpys_row_by_row_above_the_diagonal(n):
    x = vectors(n)
    expected = [
        x[i].astype(float) @ x[j].astype(float) / np.linalg.norm(x[i].astype(float)) / np.linalg.norm(x[j].astype(float))
        for i in range(n)
        for j in range(i + 1, n)
    ]
    got = cosine_upper(x)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.array(expected), atol=1e-7)


def test_the_centred_cosine_is_the_plain_one_of_shifted_vectors():
    x, mean = vectors(6, dtype=np.float64), vectors(1, seed=1, dtype=np.float64)[0]
    np.testing.assert_array_equal(cosine_upper(x, mean), cosine_upper(x - mean))
    assert np.abs(cosine_upper(x, mean) - cosine_upper(x)).max() > 0.1


def test_cosines_do_not_depend_on_length_and_turn_with_the_sign():
    x = vectors(5)
    np.testing.assert_array_equal(cosine_upper(x), cosine_upper(x * np.float32(4)))
    flipped = x.copy()
    flipped[0] *= -1
    np.testing.assert_array_equal(cosine_upper(flipped)[:4], -cosine_upper(x)[:4])


def test_equal_vectors_score_exactly_one_and_a_zero_vector_zero():
    x = np.repeat(vectors(1, d=384, seed=3), 4, axis=0)
    x[3] = 0
    assert cosine_upper(x).tolist() == [1, 1, 0, 1, 0, 0]


def test_the_square_is_symmetric_with_no_pair_on_its_diagonal():
    matrix = square(np.arange(6, dtype=np.float32), 4)
    assert matrix[0].tolist()[1:] == [0, 1, 2]
    assert matrix[1, 2:].tolist() == [3, 4]
    assert matrix[2, 3] == 5
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.isnan(np.diag(matrix)).all()


def test_pooled_rows_give_back_what_was_stored_also_from_slices_and_chunks():
    pages = [vectors(n, d=8, seed=n, dtype=np.float16) for n in (2, 0, 1, 4)]
    kind = pa.list_(pa.list_(pa.float16(), 8))
    whole = pa.array([list(p) for p in pages], kind)
    for column, expected in ((pa.chunked_array([whole]), pages), (pa.chunked_array([whole[1:3], whole[3:]]), pages[1:])):
        rows = pooled_rows(column)
        assert [r.shape for r in rows] == [(len(p), 8) for p in expected]
        for row, page in zip(rows, expected, strict=True):
            np.testing.assert_array_equal(row, page.astype(np.float32).reshape(-1, 8))


def test_the_score_table_mirrors_its_encodings_row_for_row(tmp_path, make):
    folder = make.encodings(tmp_path / "encodings")
    manifest = read_manifest(folder, "encodings")
    mean = np.array(manifest.facts["corpus_mean"], np.float32)
    every = []
    for entry in manifest.shards():
        encodings = read_shard(folder, entry)
        table = score_table(encodings.select(["episode_id", "pooled"]), mean)
        assert table.schema == SCORES
        assert table["episode_id"] == encodings["episode_id"]
        rows = pooled_rows(encodings["pooled"])
        every += rows
        assert table["num_images"].to_pylist() == [len(r) for r in rows]
        for row, plain, centred in zip(rows, table["cosine"], table["centred_cosine"], strict=True):
            np.testing.assert_array_equal(plain.values.to_numpy(), cosine_upper(row))
            np.testing.assert_array_equal(centred.values.to_numpy(), cosine_upper(row, mean))
    np.testing.assert_allclose(np.concatenate(every).mean(0), mean, rtol=1e-5)
