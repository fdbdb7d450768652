"""Examples: which pairs are shown, that they are the right pictures, and what is read for them."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from semantica.data.dataset import RowGroups, read_manifest, read_shard
from semantica.errors import DataError
from semantica.pairs.examples import (
    KEPT,
    TOO_FAR,
    TOO_NEAR,
    Reservoir,
    _shown,
    example_pngs,
    parts_of,
)
from semantica.pairs.selection import BandConfig, ScoredPairs, score_rows, select, selection_stage

BAND = BandConfig(low=0.3, high=0.8)


def watched(make, folder, band=BAND, key="k"):
    """(encodings, manifest of the encodings, manifest of the selection, the reservoir that watched it)."""
    if not (folder / "scores").exists():
        make.scores(folder / "scores", make.encodings(folder / "encodings", ((4, 3, 2, 5, 3, 4) * 3, (2, 4, 1, 3, 5, 3) * 3)))
    stage = selection_stage(folder / "scores", band, folder / f"selection-{band.low}-{band.high}-{key}")
    stage.open()
    reservoir = Reservoir(band, key)
    selection = select(stage, folder / "scores", band, reservoir)
    return folder / "encodings", read_manifest(folder / "encodings", "encodings"), selection, reservoir


def opened(encodings):
    return RowGroups(encodings, ["page_url", "images"], stage="pairs", made_by="encode")


def blocks(scores, sizes):
    """The same pairs, in blocks of so many episodes."""
    rows, done, place = np.full(len(scores), 2), 0, 0
    for size in sizes:
        yield ScoredPairs(0, place, rows[:size], scores[done : done + size])
        done, place = done + size, place + size


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.9), (-1.0, 1.0), (0.5, 0.52), (-0.2, 0.1)])
def test_every_kept_pair_is_kept_and_every_refused_one_is_refused(low, high):
    band = BandConfig(low=low, high=high)
    scores = np.linspace(-1, 1, 4001, dtype=np.float32)
    scores = np.concatenate([scores, np.float32([low, high]), np.nextafter(np.float32([low, high]), np.float32([-2, 2]))])
    inside = band.holds(scores)
    for part in parts_of(band):
        own = (scores >= part.low) & (scores < part.high)
        assert (inside[own] == (part.kind == KEPT)).all()
    covered = sum(((scores >= p.low) & (scores < p.high)).astype(int) for p in parts_of(band))
    assert (covered[~inside] == 1).all()
    assert covered.max() == 1


def test_the_choice_does_not_depend_on_how_the_pairs_are_read_but_on_the_key():
    scores = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    scores[::97] = np.nan
    chosen = []
    for key, sizes in (("a", [5000]), ("a", [1] * 100 + [4900]), ("a", [700] * 7 + [100]), ("b", [5000])):
        reservoir = Reservoir(BAND, key)
        for block in blocks(scores, sizes):
            reservoir(block)
        chosen.append([examples for _, examples in reservoir.chosen()])
    assert chosen[0] == chosen[1] == chosen[2] != chosen[3]
    assert [len(c) for c in chosen[0]] == [4] * 7
    for part, examples in reservoir.chosen():
        for example in examples:
            assert example.score == float(scores[example.row])
            assert part.low <= np.float32(example.score) < part.high


def test_every_pair_of_a_part_is_as_likely_to_be_shown():
    scores = np.full(1000, 0.55, np.float32)
    times = np.zeros(1000, int)
    for key in range(500):
        reservoir = Reservoir(BAND, str(key))
        reservoir(ScoredPairs(0, 0, np.full(1000, 2), scores))
        times[[e.row for _, examples in reservoir.chosen() for e in examples]] += 1
    assert times.sum() == 2000
    tenths = times.reshape(10, 100).sum(1)  # 200 expected in each, standard deviation 13.4
    assert np.abs(tenths - 200).max() < 5 * 13.4


def test_pairs_are_of_different_pages_as_far_as_there_are_some():
    reservoir = Reservoir(BAND, "k")
    page = np.full(40 * 39 // 2, 0.55, np.float32)
    reservoir(ScoredPairs(0, 0, np.array([40]), page))
    ((_, alone),) = reservoir.chosen()
    assert len(alone) == len(set(alone)) == 4
    reservoir = Reservoir(BAND, "k")
    reservoir(ScoredPairs(0, 0, np.array([40, *[2] * 780]), np.concatenate([page, page])))
    ((_, mixed),) = reservoir.chosen()
    assert len({e.row for e in mixed}) == 4


def test_an_example_is_the_two_pictures_that_have_its_score(tmp_path, make):
    encodings, source, _, reservoir = watched(make, tmp_path)
    rows = [
        list(score_rows(read_shard(tmp_path / "scores", e), "cosine"))
        for e in read_manifest(tmp_path / "scores", "scores").shards()
    ]
    kinds, seen = set(), 0
    for part, examples in reservoir.chosen():
        kinds.add(part.kind)
        for example in examples:
            n, upper = rows[example.file][example.row]
            i, j = example.first, example.second
            assert 0 <= i < j < n
            assert upper[i * n - i * (i + 1) // 2 + j - i - 1] == np.float32(example.score)
            table = read_shard(encodings, source.shards()[example.file])
            images = table["images"][example.row].as_py()
            shown = _shown(opened(encodings), source, example)
            assert shown.pictures == (images[i]["bytes"], images[j]["bytes"])
            assert shown.page_url == table["page_url"][example.row].as_py()
            seen += 1
    assert kinds == {TOO_FAR, KEPT, TOO_NEAR}
    assert seen > 12


def test_each_class_that_has_pairs_is_a_sheet_and_the_histogram_is_there_too(tmp_path, make):
    pngs = example_pngs(*watched(make, tmp_path))
    assert set(pngs) == {"scores", "pairs-too-far", "pairs-kept", "pairs-too-near"}
    for png in pngs.values():
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            assert len(np.unique(np.array(image.convert("L")))) > 20
    everything = BandConfig(low=-1.0, high=1.0)
    assert set(example_pngs(*watched(make, tmp_path, everything))) == {"scores", "pairs-kept"}


def test_the_pictures_of_a_pair_stand_on_its_sheet(tmp_path, make):
    encodings, source, selection, reservoir = watched(make, tmp_path)
    with Image.open(io.BytesIO(example_pngs(encodings, source, selection, reservoir)["pairs-kept"])) as image:
        sheet = np.array(image)
    for part, examples in reservoir.chosen():
        for data in _shown(opened(encodings), source, examples[0]).pictures if part.kind == KEPT else ():
            with Image.open(io.BytesIO(data)) as picture:
                pixels = np.array(picture.convert("RGB"))
            drawn = pixels.repeat(8, 0).repeat(8, 1)  # 16 px pictures at 128 px
            corners = np.argwhere((sheet == drawn[0, 0]).all(-1))
            windows = (sheet[y : y + 128, x : x + 128] for y, x in corners)
            assert any(w.shape == drawn.shape and (w == drawn).all() for w in windows)


def test_only_the_pictures_of_the_row_groups_of_the_pairs_shown_are_read(tmp_path, make):
    encodings, source, selection, reservoir = watched(make, tmp_path, BandConfig(low=-0.9, high=0.999))
    before = example_pngs(encodings, source, selection, reservoir)
    used = {(e.file, e.row // 2) for _, examples in reservoir.chosen() for e in examples}  # two rows a group
    spoilt = 0
    for file, entry in enumerate(source.shards()):
        data = bytearray((encodings / entry.path).read_bytes())
        with pq.ParquetFile(encodings / entry.path) as parquet:
            groups = [parquet.metadata.row_group(g) for g in range(parquet.metadata.num_row_groups)]
        for index, group in enumerate(groups):
            for column in map(group.column, range(group.num_columns)):
                if (file, index) not in used or column.path_in_schema.split(".")[0] not in ("page_url", "images"):
                    start = column.dictionary_page_offset or column.data_page_offset
                    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
                    spoilt += (file, index) not in used
        (encodings / entry.path).write_bytes(data)
    assert spoilt
    with pytest.raises(DataError, match="not readable"):
        read_shard(encodings, source.shards()[0])
    assert example_pngs(encodings, source, selection, reservoir) == before


def test_encodings_that_cannot_be_read_are_named(tmp_path, make):
    encodings, source, selection, reservoir = watched(make, tmp_path)
    for path in encodings.glob("*.parquet"):
        path.write_bytes(b"no Parquet")
    with pytest.raises(DataError, match=r"shard-0000\d\.parquet is not readable .* run semantica encode again"):
        example_pngs(encodings, source, selection, reservoir)


def test_a_changed_bit_of_a_picture_is_damage_and_no_other_example(tmp_path, make):
    encodings, source, selection, reservoir = watched(make, tmp_path)
    for path in encodings.glob("*.parquet"):
        data = bytearray(path.read_bytes())
        metadata = pq.read_metadata(path)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.endswith("bytes"))
            data[column.data_page_offset + column.total_compressed_size - 1] ^= 1
        path.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-0000\d\.parquet is not readable .*CRC"):
        example_pngs(encodings, source, selection, reservoir)
