"""What a loader refuses: inputs that do not belong together, settings that they cannot meet, damaged files."""

import re
import shutil

import pyarrow.parquet as pq
import pytest

from semantica.errors import ConfigError, DataError
from tests.pairs.batches import loader


def test_encodings_that_the_selection_was_not_made_from_are_refused(run, make):
    make.encodings(run / "others", salt=1)
    with pytest.raises(DataError, match=r"made from other encodings .* run semantica pairs"):
        loader(run, encodings="others")


def test_more_lanes_than_row_groups_are_refused(run):
    with pytest.raises(ConfigError, match=r"train\.num_lanes is 16, but only \d+ row groups"):
        loader(run, num_lanes=16, batch_size=16)


def test_pictures_smaller_than_the_training_resolution_are_refused(run):
    with pytest.raises(DataError, match="must be at least 32 px, got 16x16"):
        loader(run, resolution_px=32).batch(0)


@pytest.mark.parametrize(("folder", "job"), [("encodings", "encode"), ("scores", "pairs")])
def test_a_damaged_shard_is_refused_by_its_own_path(run, tmp_path, folder, job):
    shutil.copytree(run, tmp_path / "run")
    own = loader(tmp_path / "run")
    for path in (tmp_path / "run" / folder).glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError) as caught:
        own.batch(0)
    assert f"{tmp_path / 'run' / folder / 'shard-0000'}" in str(caught.value)
    assert re.search(rf"expected \d+ bytes, got \d+\); delete .*{folder} and run semantica {job} again", str(caught.value))


@pytest.mark.parametrize(("folder", "column"), [("encodings", "tokens"), ("encodings", "images"), ("scores", "cosine")])
def test_a_changed_bit_of_a_row_group_is_damage_and_no_other_batch(run, tmp_path, folder, column):
    shutil.copytree(run, tmp_path / "run")
    own = loader(tmp_path / "run")
    for path in (tmp_path / "run" / folder).glob("*.parquet"):
        data, metadata = bytearray(path.read_bytes()), pq.read_metadata(path)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            place = [c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.startswith(f"{column}.")][-1]
            data[place.data_page_offset + place.total_compressed_size - 1] ^= 1
        path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{folder}/shard-0000\d\.parquet is not readable .*CRC"):
        own.batch(0)


def test_another_file_of_the_same_size_is_damage(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    own = loader(tmp_path / "run")
    for path in (tmp_path / "run" / "encodings").glob("*.parquet"):
        rows, size = pq.read_table(path), path.stat().st_size
        pq.write_table(rows, path, row_group_size=1, compression="zstd", compression_level=19)
        path.write_bytes(path.read_bytes().rjust(size, b"P") if path.stat().st_size < size else path.read_bytes()[-size:])
    with pytest.raises(DataError, match="is not readable"):
        own.batch(0)


def test_encodings_without_tokens_need_a_function_that_makes_them(lean):
    with pytest.raises(DataError, match=r"holds no tokens; pass tokens_of, or run semantica encode with --store-tokens"):
        loader(lean)
