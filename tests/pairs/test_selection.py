"""The band as a view: which pairs it keeps, what it counts, and what it does not touch."""

import itertools
import os
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semantica.data.dataset import StageOutput, read_manifest, read_shard
from semantica.data.location import file_sha256
from semantica.data.schemas import SCORES
from semantica.errors import DataError
from semantica.pairs import scores as pairs_scores
from semantica.pairs.scores import square
from semantica.pairs.selection import (
    NUM_BINS,
    BandConfig,
    ScoredPairs,
    read_selection,
    score_rows,
    select,
    selection_stage,
    shares,
)

COSINE = st.floats(-1, 1, width=32)


@pytest.fixture(scope="module")
def scored(tmp_path_factory, make):
    folder = tmp_path_factory.mktemp("pairs")
    make.encodings(folder / "encodings")
    return make.scores(folder / "scores", folder / "encodings")


def all_rows(scores, column="cosine"):
    """[(file, row group, number of images, upper triangle)] of every episode."""
    rows = []
    for file, entry in enumerate(read_manifest(scores, "scores").shards()):
        groups = [g for g, n in enumerate(entry.row_group_rows) for _ in range(n)]
        rows += [(file, g, *r) for g, r in zip(groups, score_rows(read_shard(scores, entry), column), strict=True)]
    return rows


@settings(deadline=None, max_examples=80)
@given(data=st.data(), n=st.integers(0, 6), bounds=st.tuples(COSINE, COSINE).filter(lambda b: b[0] != b[1]))
def test_partners_are_those_of_a_brute_force_search_with_both_ends_inside(data, n, bounds):
    low, high = sorted(bounds)
    # Half of the scores are exactly an end of the band, where < and <= differ.
    one = st.one_of(COSINE, st.sampled_from([low, high]))
    upper = np.array(data.draw(st.lists(one, min_size=n * (n - 1) // 2, max_size=n * (n - 1) // 2)), np.float32)
    kept = BandConfig(low=low, high=high).holds(square(upper, n))
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    expected = {pair for pair, score in zip(pairs, upper.tolist(), strict=True) if low <= score <= high}
    assert {(i, j) for i in range(n) for j in range(n) if kept[i, j]} == expected | {(j, i) for i, j in expected}


@pytest.mark.parametrize("bound", [0.3, 0.9, 0.1, 0.7])
def test_a_score_stored_as_float32_at_a_decimal_end_is_inside(bound):
    # float32(0.3) > 0.3 and float32(0.9) < 0.9: comparing in float64 would lose one of them.
    upper = np.array([bound], np.float32)
    assert BandConfig(low=bound, high=1.0).holds(square(upper, 2))[0, 1]
    assert BandConfig(low=-1.0, high=bound).holds(square(upper, 2))[0, 1]
    assert not BandConfig(low=bound, high=1.0).holds(square(np.nextafter(upper, np.float32(-1)), 2))[0, 1]
    assert not BandConfig(low=-1.0, high=bound).holds(square(np.nextafter(upper, np.float32(1)), 2))[0, 1]


@pytest.mark.parametrize("score", ["cosine", "centred_cosine"])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.3, 0.9), (-0.2, 0.1)])
def test_counts_are_those_of_a_brute_force_count(tmp_path, scored, make, score, low, high):
    manifest = read_manifest(make.selection(tmp_path / "s", scored, low=low, high=high, score=score), "selection")
    rows = all_rows(scored, score)
    inside = [(f, g, (square(u, n) >= low - 1e-9) & (square(u, n) <= high + 1e-9)) for f, g, n, u in rows]
    assert manifest.counts == {
        "num_episodes": len(rows),
        "num_episodes_kept": sum(bool(kept.any()) for _, _, kept in inside),
        "num_images": sum(n for _, _, n, _ in rows),
        "num_targets": sum(int(kept.any(1).sum()) for _, _, kept in inside),
        "num_pairs": sum(len(u) for *_, u in rows),
        "num_pairs_kept": sum(int(kept.sum()) // 2 for _, _, kept in inside),
    }
    draws = {}
    for file, group, kept in inside:
        draws[file, group] = draws.get((file, group), 0) + int(kept.any(1).sum())
    assert manifest.facts["row_groups"] == [[f, g, n] for (f, g), n in draws.items()]
    assert 0 < manifest.counts["num_pairs_kept"] <= manifest.counts["num_pairs"]


def test_the_histogram_holds_every_pair_in_its_bin(tmp_path, scored, make):
    manifest = read_manifest(make.selection(tmp_path / "s", scored), "selection")
    histogram = np.array(manifest.facts["histogram"])
    assert histogram.sum() == manifest.counts["num_pairs"]
    cosines = np.concatenate([u for *_, u in all_rows(scored)])
    edges = np.linspace(-1, 1, NUM_BINS + 1)
    for low in (-0.5, 0.3, 0.9):  # the band's usual ends are edges: the bars inside it add up to the pairs inside it
        first = int(np.argmin(np.abs(edges - low)))
        assert edges[first] == pytest.approx(low)
        assert histogram[first:].sum() == (cosines >= low).sum()


def test_another_band_touches_no_score_and_needs_no_encodings(tmp_path, make):
    make.encodings(tmp_path / "encodings")
    scores = make.scores(tmp_path / "scores", tmp_path / "encodings")
    make.selection(tmp_path / "first", scores)
    shutil.rmtree(tmp_path / "encodings")

    def state():
        return {p: (p.stat().st_mtime_ns, file_sha256(p)) for p in sorted(scores.rglob("*")) if p.is_file()}

    before = state()
    make.selection(tmp_path / "second", scores, low=0.0, high=0.95, score="centred_cosine")
    assert state() == before
    assert read_selection(tmp_path / "second").band == BandConfig(low=0.0, high=0.95, score="centred_cosine")
    # The view holds no data of its own.
    assert read_manifest(tmp_path / "second", "selection").files == ()


def test_only_the_column_of_the_score_is_read(tmp_path, make, scored):
    # The other column is gone from these files, so reading it would fail.
    source = read_manifest(scored, "scores")
    stage = StageOutput(tmp_path / "scores", "scores", {}, source.inputs)
    stage.open()
    for entry in source.shards():
        table = read_shard(scored, entry).drop_columns(["centred_cosine", "episode_id"])
        stage.write_shard(entry.path.removesuffix(".parquet"), {"": table}, {}, 2)
    stage.finish(source.counts, {})
    full = read_manifest(make.selection(tmp_path / "a", scored), "selection")
    lean = read_manifest(make.selection(tmp_path / "b", stage.folder), "selection")
    assert (lean.counts, lean.facts) == (full.counts, full.facts)


def test_an_empty_band_is_refused_with_its_bounds(tmp_path, scored):
    band = BandConfig(low=0.99999, high=1.0)
    stage = selection_stage(scored, band, tmp_path / "s")
    stage.open()
    with pytest.raises(DataError, match=r"none of \d+ pairs has 0.99999 <= cosine <= 1.0; widen the band"):
        select(stage, scored, band)
    with pytest.raises(DataError, match="not finished"):
        read_selection(tmp_path / "s")


def test_a_run_that_is_moved_as_a_whole_is_still_the_same_run(tmp_path, make):
    make.encodings(tmp_path / "run" / "encodings")
    make.scores(tmp_path / "run" / "scores", tmp_path / "run" / "encodings")
    before = read_selection(make.selection(tmp_path / "run" / "selection", tmp_path / "run" / "scores"))
    shutil.move(tmp_path / "run", tmp_path / "moved")
    after = read_selection(tmp_path / "moved" / "selection")
    assert after.scores == tmp_path / "moved" / "scores"
    assert (after.manifest, after.band, after.row_groups) == (before.manifest, before.band, before.row_groups)


def test_a_selection_reached_through_a_link_finds_its_scores(tmp_path, make, scored):
    (tmp_path / "disk" / "deep" / "down").mkdir(parents=True)
    os.symlink(tmp_path / "disk" / "deep" / "down", tmp_path / "link")
    make.selection(tmp_path / "link" / "selection", scored)
    for folder in (tmp_path / "link" / "selection", tmp_path / "disk" / "deep" / "down" / "selection"):
        assert read_selection(folder).scores == scored.resolve()


def test_a_selection_of_scores_that_changed_is_refused(tmp_path, make):
    make.encodings(tmp_path / "encodings")
    make.scores(tmp_path / "scores", tmp_path / "encodings")
    make.selection(tmp_path / "selection", tmp_path / "scores")
    shutil.rmtree(tmp_path / "scores")
    make.scores(tmp_path / "scores", make.encodings(tmp_path / "others", salt=1))
    with pytest.raises(DataError, match="was made from other scores"):
        read_selection(tmp_path / "selection")


def random_scores(folder, seed, rows_per_group=5):
    """Scores of random episodes, some empty, some of one picture, with values at the ends of the band, NaN, -1 and 1."""
    random = np.random.default_rng(seed)
    stage = StageOutput(folder, "scores", {}, {"encodings": "1" * 64})
    stage.open()
    for shard in range(3):
        sizes = [*random.integers(0, 8, 33).tolist(), 0, 1, 30]
        lists = [random.uniform(-1, 1, n * (n - 1) // 2).astype(np.float32) for n in sizes]
        for values in lists:
            for special in (0.3, 0.9, np.nextafter(np.float32(0.3), np.float32(0)), np.nan, -1, 1, 0.0):
                values[random.random(len(values)) < 0.05] = special
        kind = pa.list_(pa.float32())
        columns = [pa.array([""] * len(sizes)), pa.array(sizes, pa.int32()), pa.array(lists, kind), pa.array(lists, kind)]
        stage.write_shard(f"shard-{shard:05d}", {"": pa.Table.from_arrays(columns, schema=SCORES)}, {}, rows_per_group)
    stage.finish({}, {})
    return folder


@pytest.mark.parametrize("block_values", [1, 500, 10**9])
@pytest.mark.parametrize("seed", [0, 1])
def test_select_counts_what_a_slow_search_counts_whatever_is_read_at_once(tmp_path, make, monkeypatch, seed, block_values):
    monkeypatch.setattr(pairs_scores, "_BLOCK_VALUES", block_values)
    folder = random_scores(tmp_path / "scores", seed)
    manifest = read_manifest(make.selection(tmp_path / "selection", folder), "selection")
    counts, histogram, draws = Counter(), np.zeros(NUM_BINS, int), Counter()
    for file, group, n, upper in all_rows(folder):
        pairs = {p: s for p, s in zip(itertools.combinations(range(n), 2), upper, strict=True)}
        kept = [p for p, s in pairs.items() if np.float32(0.3) <= s <= np.float32(0.9)]
        targets = {image for pair in kept for image in pair}
        row = {"episodes": 1, "episodes_kept": bool(kept), "images": n, "targets": len(targets)}
        counts.update({f"num_{k}": int(v) for k, v in (row | {"pairs": len(pairs), "pairs_kept": len(kept)}).items()})
        draws[file, group] += len(targets)
        histogram += np.histogram(upper, NUM_BINS, (-1, 1))[0]
    assert manifest.counts == dict(counts)
    assert manifest.facts["histogram"] == histogram.tolist()
    assert manifest.facts["row_groups"] == [[f, g, n] for (f, g), n in sorted(draws.items())]
    assert counts["num_pairs"] - histogram.sum() > 0  # NaN is in no bin


def test_two_views_share_their_scores_and_never_open_a_picture(tmp_path, make):
    encodings = make.encodings(tmp_path / "encodings")
    scores = make.scores(tmp_path / "scores", encodings)
    for path in encodings.glob("*.parquet"):
        path.write_bytes(b"no picture can be read from here")
    views = [make.selection(tmp_path / f"view{i}", scores, low=low) for i, low in enumerate((0.1, 0.5))]
    assert [read_selection(view).scores for view in views] == [scores, scores]
    for view in views:
        assert not list(view.rglob("*.parquet"))
        assert sum(path.stat().st_size for path in view.rglob("*") if path.is_file()) < 20_000


def test_the_pairs_that_a_watcher_sees_name_the_pictures_they_are_of():
    sizes = np.array([3, 0, 1, 4])
    block = ScoredPairs(0, 0, sizes, np.zeros(9, np.float32))
    expected = [(s + i, s + j) for s, n in ((0, 3), (4, 4)) for i, j in itertools.combinations(range(n), 2)]
    assert list(zip(*(e.tolist() for e in block.ends), strict=True)) == expected


def test_the_shares_of_a_band_are_its_parts_of_pairs_episodes_and_pictures():
    counts = dict(num_episodes=4, num_episodes_kept=1, num_images=10, num_targets=5, num_pairs=20, num_pairs_kept=3)
    assert shares(counts) == {"pairs_yield": 0.15, "episodes_yield": 0.25, "targets_share": 0.5}


def test_scores_that_do_not_fit_their_pictures_are_refused(tmp_path):
    stage = StageOutput(tmp_path / "scores", "scores", {}, {"encodings": "1" * 64})
    stage.open()
    rows = [pa.array([""]), pa.array([3], pa.int32()), *[pa.array([[0.5, 0.5]], pa.list_(pa.float32()))] * 2]
    stage.write_shard("shard-0", {"": pa.Table.from_arrays(rows, schema=SCORES)}, {})
    stage.finish({}, {})
    view = selection_stage(stage.folder, BandConfig(), tmp_path / "selection")
    view.open()
    with pytest.raises(DataError, match=r"does not hold n\(n-1\)/2 scores"):
        select(view, stage.folder, BandConfig())


def test_a_truncated_shard_of_scores_is_refused_by_its_path(tmp_path, make):
    scores = make.scores(tmp_path / "scores", make.encodings(tmp_path / "encodings"))
    path = sorted(scores.glob("*.parquet"))[1]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{path.name}: expected \d+ bytes, got \d+"):
        make.selection(tmp_path / "selection", scores)
