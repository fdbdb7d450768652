"""Which held-out pictures there are and where, and conditioning that reads no more row groups than it must."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from semantica.conditioning.signals import Signal
from semantica.data.dataset import RowGroups, StageOutput, read_manifest
from semantica.data.pictures import PictureRef, decode, list_pictures
from semantica.errors import DataError
from semantica.generation.conditions import Conditions, columns_of

SIZES = ((2, 1, 3), (1,), (2, 2, 2, 1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make):
    """Encodings whose shards are all held out: with tokens, and without."""
    base = tmp_path_factory.mktemp("held-out")
    return [held_out(make, base, tokens) for tokens in (True, False)]


def held_out(make, base, tokens, change=lambda table: table):
    source = make.encodings(base / f"train-{tokens}", SIZES, tokens=tokens)
    folder = base / f"held-out-{tokens}"
    manifest = read_manifest(source, "encodings")
    stage = StageOutput(folder, "encodings", dict(manifest.config), dict(manifest.inputs))
    assert stage.open() is None
    for entry in manifest.shards():
        stage.write_shard(entry.path.removesuffix(".parquet"), {"held_out": change(pq.read_table(source / entry.path))}, {}, 2)
    stage.finish(manifest.counts, manifest.facts)
    return folder


def number(picture):
    return int(picture.image_id.removeprefix("image"))


def numbered(folder):
    return {number(picture): picture for picture in list_pictures(folder)}


def computed(pictures):
    pixels = [decode(data, 16)[:, 0, 0].int() for data in pictures]
    return torch.stack([torch.full((3, 8), float(p[0] + 256 * p[1])) for p in pixels])


def test_every_held_out_picture_is_listed_at_its_row_group(folders):
    for folder in folders:
        listed = list_pictures(folder)
        assert [number(picture) for picture in listed] == list(range(14))
        assert listed[0] == PictureRef("image0000", "page0000-00", 0, 0)
        assert listed[3] == PictureRef("image0003", "page0000-02", 0, 1)
        assert listed[13] == PictureRef("image0013", "page0007-03", 2, 1)
        assert {picture.side_px for picture in listed} == {16}


@pytest.mark.parametrize("order", [(0, 13, 6, 3), (5, 5, 2, 5), (12,)])
def test_rows_are_those_of_the_wanted_pictures_in_their_order(folders, make, order):
    for folder, tokens_of in zip(folders, (None, computed), strict=True):
        places = numbered(folder)
        cond = Conditions(folder, tokens_of).read([places[n] for n in order])
        assert cond.tokens[:, 0, 0, 0].tolist() == list(order)
        assert cond.tokens.shape == (len(order), 1, 3, 8)
        expected = [np.random.default_rng([7, n]).standard_normal(8) + 0.6 for n in order]  # as conftest makes them
        assert np.array_equal(cond.pooled[:, 0].numpy(), np.array(expected).astype(np.float16).astype(np.float32))
        assert not cond.is_null.any()


def test_no_row_group_is_opened_that_holds_no_wanted_picture(folders, monkeypatch):
    opened = []
    original = RowGroups.read
    monkeypatch.setattr(RowGroups, "read", lambda self, entry, group: opened.append((entry, group)) or original(self, entry, group))
    places = numbered(folders[0])
    Conditions(folders[0], None).read([places[n] for n in (13, 0, 1, 12)])
    files = read_manifest(folders[0], "encodings").shards("held_out")
    assert sorted((files.index(entry), group) for entry, group in opened) == [(0, 0), (2, 1)]


def test_a_picture_wanted_twice_is_encoded_once(folders):
    calls = []
    places = numbered(folders[1])
    Conditions(folders[1], lambda pictures: calls.append(len(pictures)) or computed(pictures)).read(
        [places[n] for n in (3, 9, 3, 3)]
    )
    assert calls == [2]


def test_encodings_without_tokens_need_a_function_that_makes_them(folders):
    with pytest.raises(DataError, match="holds no tokens; pass tokens_of"):
        Conditions(folders[1], None)


def test_a_shard_that_cannot_be_read_is_refused_by_its_path(folders, tmp_path):
    folder = shutil.copytree(folders[0], tmp_path / "damaged")
    pictures = list_pictures(folder)
    path = folder / "held_out" / "shard-00002.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"held_out/shard-00002\.parquet is not readable"):
        Conditions(folder, None).read(pictures)


# Columns of signals

BRIGHT = Signal(name="bright", enters="film", dim=2)
COARSE = Signal(name="coarse", enters="channels", dim=3)
SOURCE = Signal(name="source", enters="film", dim=2)  # called like a column that encode writes


def with_column(name, value, of=None):
    """A change of a table: one more column, with value(the picture's number) per picture."""

    def change(table):
        values = [[value(int(image["image_id"].removeprefix("image"))) for image in page] for page in table["images"].to_pylist()]
        return table.append_column(name, pa.array(values, of))

    return change


def test_a_signal_is_read_from_the_column_of_its_name_and_is_absent_where_that_is_null(make, tmp_path):
    numbers = pa.list_(pa.list_(pa.float32()))
    change = with_column("bright", lambda n: None if n == 6 else [float(n), -float(n)], numbers)
    folder = held_out(make, tmp_path, True, change)
    assert columns_of(folder, (COARSE, BRIGHT, SOURCE)) == ["bright"]
    places = numbered(folder)
    cond = Conditions(folder, None, [BRIGHT], 16).read([places[n] for n in (13, 6, 3, 13)])
    values = cond.signals["bright"].tensors["bright"]
    assert cond.has("bright").tolist() == [True, False, True, True]
    assert values[cond.has("bright")].tolist() == [[13.0, -13.0], [3.0, -3.0], [13.0, -13.0]]
    assert cond.tokens[:, 0, 0, 0].tolist() == [13, 6, 3, 13]


def test_maps_are_read_from_a_column_of_flat_lists(make, tmp_path):
    folder = held_out(make, tmp_path, True, with_column("coarse", lambda n: [float(n + i) for i in range(12)]))
    cond = Conditions(folder, None, [COARSE], 2).read([numbered(folder)[4]])
    assert torch.equal(cond.signals["coarse"].tensors["coarse"], torch.arange(4.0, 16.0).view(1, 3, 2, 2))


@pytest.mark.parametrize("value", [[1.0], [1.0, float("nan")], ["a", "b"], 3.0])
def test_a_column_that_does_not_hold_the_signal_is_refused_by_its_name(make, tmp_path, value):
    folder = held_out(make, tmp_path, True, with_column("bright", lambda n: value))
    with pytest.raises(DataError, match=r"column bright of .* must hold 2 finite numbers or null for each picture"):
        Conditions(folder, None, [BRIGHT], 16).read([numbered(folder)[0]])


def test_a_column_with_one_value_per_page_is_refused(make, tmp_path):
    folder = held_out(make, tmp_path, True, lambda table: table.append_column("bright", pa.array([[0.0]] * len(table))))
    with pytest.raises(DataError, match=r"column bright of .* must hold one value per picture of a page"):
        Conditions(folder, None, [BRIGHT], 16).read([numbered(folder)[0]])


def test_encodings_without_columns_of_signals_are_read_as_before(folders):
    assert columns_of(folders[0], (BRIGHT, SOURCE)) == columns_of(folders[0], ()) == []
