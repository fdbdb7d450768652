"""Scores: the cosine of every pair, in order, plain and with the mean subtracted."""

import math
import re
import tracemalloc
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semantica.data.dataset import StageOutput, read_manifest, read_shard
from semantica.data.schemas import SCORES, encodings_schema
from semantica.errors import DataError
from semantica.pairs.scores import (
    cosine_upper,
    damage_note,
    finish_scores,
    pooled_rows,
    score_shard,
    score_table,
    square,
    unscored,
)
from semantica.pairs.selection import BandConfig, select, selection_stage


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


def table_of(pages, d=8):
    """An encodings table, its two scored columns only, with these pages of float16 embeddings."""
    flat = np.concatenate([np.zeros((0, d), np.float16), *pages])
    offsets = pa.array(np.cumsum([0, *map(len, pages)]).astype(np.int32))
    pooled = pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), d))
    return pa.table({"episode_id": pa.array([f"page{i}" for i in range(len(pages))]), "pooled": pooled})


def triangles(table, column="cosine"):
    return [value.values.to_numpy() for value in table[column]]


def test_scores_are_the_exact_cosines_within_half_a_unit_in_the_last_place():
    x = vectors(6, d=384, seed=5, dtype=np.float16)
    exact = [[Fraction(float(v)) for v in row] for row in x]
    dot = lambda a, b: sum((p * q for p, q in zip(a, b, strict=True)), Fraction(0))  # noqa: E731
    expected = [
        float(dot(exact[i], exact[j])) / math.sqrt(dot(exact[i], exact[i]) * dot(exact[j], exact[j]))
        for i in range(6)
        for j in range(i + 1, 6)
    ]
    got = cosine_upper(x)
    assert (np.abs(got.astype(np.float64) - expected) <= np.spacing(np.abs(got)) / 2 + 1e-14).all()


@pytest.mark.parametrize("d", [8, 64, 384])
def test_neighbours_in_a_batch_change_no_bit_of_a_score(d):
    random = np.random.default_rng(d)
    sizes = [*random.integers(0, 9, 300), 40, 513, 1, 2]  # one page above the size where a matrix is made by rows
    pages = [vectors(n, d=d, seed=i, dtype=np.float16) for i, n in enumerate(sizes)]
    mean = vectors(1, d=d, seed=999)[0]
    whole = score_table(table_of(pages, d), mean)
    for i in (*range(0, 300, 7), 300, 301, 302, 303):
        alone = score_table(table_of(pages[i : i + 1], d), mean)
        for column, reference in (("cosine", cosine_upper(pages[i])), ("centred_cosine", cosine_upper(pages[i], mean))):
            np.testing.assert_array_equal(triangles(whole, column)[i], triangles(alone, column)[0])
            np.testing.assert_array_equal(triangles(whole, column)[i], reference)


def test_the_order_of_episodes_does_not_matter():
    pages = [vectors(n, seed=i, dtype=np.float16) for i, n in enumerate([3, 5, 0, 2, 5, 3, 1, 4] * 20)]
    order = np.random.default_rng(0).permutation(len(pages))
    mean = vectors(1, seed=9)[0]
    straight, shuffled = (triangles(score_table(table_of(p), mean)) for p in (pages, [pages[i] for i in order]))
    for place, i in enumerate(order):
        np.testing.assert_array_equal(shuffled[place], straight[i])


def test_embeddings_that_are_not_finite_score_nan_and_only_with_themselves():
    x = vectors(4)
    x[1, 3], x[2, 0] = np.nan, np.inf
    got = cosine_upper(x)
    assert np.isnan(got).tolist() == [True, True, False, True, True, True]
    np.testing.assert_array_equal(got[2], cosine_upper(x[[0, 3]])[0])


def test_a_page_of_3000_pictures_is_scored_whole_in_memory_for_its_triangle():
    n = 3000
    page = vectors(n, d=16, seed=2, dtype=np.float16)
    tracemalloc.start()
    got = cosine_upper(page)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < got.nbytes + 2**26 < n * n * 8 * 2  # 64 MiB beside the triangle; one matrix alone has 69 MiB
    for i in (0, 255, 256, 1777, 2998):
        start = i * n - i * (i + 1) // 2
        row = [cosine_upper(page[[i, j]])[0] for j in (i + 1, (i + n) // 2, n - 1)]
        np.testing.assert_allclose([got[start], got[start + (i + n) // 2 - i - 1], got[start + n - i - 2]], row, atol=6e-8)


def scoring(tmp_path, make):
    """(manifest of fresh encodings, opened stage of scores, function that scores all that is left)."""
    encodings = make.encodings(tmp_path / "encodings")
    source = read_manifest(encodings, "encodings")
    stage = StageOutput(tmp_path / "scores", "scores", {}, {"encodings": source.hash})
    stage.open()
    mean = np.array(source.facts["corpus_mean"], np.float32)

    def run():
        return [score_shard(stage, encodings, entry, mean) for entry in unscored(stage, source)]

    return source, stage, run


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def one_bit_of_an_embedding_changed(path):
    column = next(c for c in range(99) if pq.read_metadata(path).row_group(0).column(c).path_in_schema.startswith("pooled"))
    place = pq.read_metadata(path).row_group(0).column(column)
    data = bytearray(path.read_bytes())
    data[place.data_page_offset + place.total_compressed_size - 1] ^= 1
    path.write_bytes(bytes(data))


def garbage_of_the_same_size(path):
    path.write_bytes(b"x" * path.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncated, r"expected \d+ bytes, got \d+"),
        (one_bit_of_an_embedding_changed, "not readable .*CRC"),
        (garbage_of_the_same_size, "not readable"),
        (lambda path: path.unlink(), "missing"),
    ],
    ids=["truncated", "changed", "garbage", "missing"],
)
def test_a_damaged_shard_is_quarantined_whole_and_keeps_its_place(tmp_path, make, damage, reason):
    source, stage, run = scoring(tmp_path, make)
    lost = source.shards()[0]
    damage(tmp_path / "encodings" / lost.path)
    run()
    manifest = finish_scores(stage, 0.5)
    assert manifest.counts["num_episodes"] == source.counts["num_episodes"]
    assert (manifest.counts["num_damaged_shards"], manifest.counts["num_damaged_episodes"]) == (1, lost.num_rows)
    assert re.fullmatch(rf"{lost.path}: .*{reason}.*", manifest.facts["damaged"][0])
    assert [e.row_group_rows for e in manifest.shards()] == [e.row_group_rows for e in source.shards()]
    empty = read_shard(stage.folder, manifest.shards()[0])
    assert empty.schema == SCORES
    assert empty["num_images"].to_pylist() == [0] * lost.num_rows
    view = selection_stage(stage.folder, BandConfig(low=-1.0, high=1.0), tmp_path / "selection")
    view.open()
    draws = select(view, stage.folder, BandConfig(low=-1.0, high=1.0)).facts["row_groups"]
    assert all((n == 0) == (file == 0) for file, _, n in draws)
    assert f"{lost.num_rows} of {manifest.counts['num_episodes']} episodes" in damage_note(manifest)


def test_too_much_damage_fails_with_the_share_and_the_first_shard_and_is_mended_by_another_run(tmp_path, make):
    source, stage, run = scoring(tmp_path, make)
    path = tmp_path / "encodings" / source.shards()[1].path
    whole = path.read_bytes()
    truncated(path)
    assert len(run()) == 2
    with pytest.raises(DataError, match=r"6 of 12 episodes \(50\.00%\) .*shard-00001.*max_damaged_share = 0\.01"):
        finish_scores(stage, 0.01)
    with pytest.raises(DataError, match="not finished"):
        read_manifest(stage.folder, "scores")
    path.write_bytes(whole)
    assert len(run()) == 1  # the damaged one, and not the sound one
    manifest = finish_scores(stage, 0.01)
    assert manifest.counts["num_damaged_episodes"] == 0
    assert damage_note(manifest) == ""


@pytest.mark.parametrize("damaged", [False, True])
def test_the_row_groups_of_the_scores_are_those_of_the_encodings_whatever_their_sizes(tmp_path, make, monkeypatch, damaged):
    from semantica.pairs import scores

    groups = (3, 1, 1, 4, 2)
    kind = encodings_schema(8, None, None)
    pages = [vectors(n, d=8, seed=n, dtype=np.float16) for n in (3, 4, 5, 30, 2, 0, 1, 2, 3, 6, 7)]
    table = make.episodes(map(len, pages)).append_column(
        kind.field("pooled"), table_of(pages)["pooled"].cast(kind.field("pooled").type)
    )
    source = StageOutput(tmp_path / "encodings", "encodings", {})
    source.open()
    with source.shard_writer("shard-00000", 100) as writer:
        for end, rows in zip(np.cumsum(groups).tolist(), groups, strict=True):
            writer.write("", table.slice(end - rows, rows))
            writer.end_group("")
    (entry,) = source.finish({}, {}).shards()
    assert entry.row_group_rows == groups
    if damaged:
        truncated(tmp_path / "encodings" / entry.path)
    # A row group of scores may be larger than the writer would make it.
    monkeypatch.setattr("semantica.data.shard_writer.MAX_GROUP_BYTES", 64)
    stage = StageOutput(tmp_path / "scores", "scores", {})
    for block in (1, 50, 2**22):  # numbers at once: one row group, a few, all
        monkeypatch.setattr(scores, "_BLOCK_VALUES", block)
        stage.open()
        score_shard(stage, tmp_path / "encodings", entry, np.ones(8, np.float32))
        (scored,) = finish_scores(stage, 1.0).shards()
        assert scored.row_group_rows == groups
        expected = [0] * 11 if damaged else [len(page) for page in pages]
        assert read_shard(stage.folder, scored)["num_images"].to_pylist() == expected


def test_streamed_scores_are_those_of_the_whole_shard(tmp_path, make, monkeypatch):
    from semantica.pairs import scores

    source, stage, run = scoring(tmp_path, make)
    monkeypatch.setattr(scores, "_BLOCK_VALUES", 1)  # every row group alone
    run()
    manifest = finish_scores(stage, 0.01)
    mean = np.array(source.facts["corpus_mean"], np.float32)
    for entry, scored in zip(source.shards(), manifest.shards(), strict=True):
        assert entry.row_group_rows == scored.row_group_rows
        encodings = read_shard(tmp_path / "encodings", entry)
        assert read_shard(stage.folder, scored).equals(score_table(encodings.select(["episode_id", "pooled"]), mean))
