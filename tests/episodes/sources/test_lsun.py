"""What label episodes LSUN's databases give, written by LMDB itself, and that a damaged one is refused before it is mapped."""

import hashlib

import lmdb
import pytest

from semantica.data.location import location
from semantica.episodes.pages import ReadConfig, Source
from semantica.episodes.quarantine import DamagedFile, Reason
from semantica.episodes.sources.lsun import LsunSource
from semantica.errors import DataError

SOURCE = LsunSource()
SETTINGS = ReadConfig(pages_per_part=3, images_per_label=4, max_image_bytes=5000)


def write(folder, count, extra=()):
    """A database of `count` pictures under the keys that LSUN uses; value -> key."""
    values = {
        hashlib.sha1(f"{folder.name}{i}".encode()).hexdigest().encode(): f"{folder.name} {i}".encode() * 50 for i in range(count)
    }
    values |= dict(extra)
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as writer:
        for key, value in values.items():
            writer.put(key, value)
    return {value: key for key, value in values.items()}


def pages_of(root, settings=SETTINGS):
    return [page for part in SOURCE.parts(root, settings) for page in SOURCE.pages(root, part, settings)]


def test_every_value_is_one_picture_of_its_class(tmp_path):
    churches, towers = write(tmp_path / "church_outdoor_train_lmdb", 30), write(tmp_path / "tower_val_lmdb", 5)
    pages = pages_of(tmp_path)
    found = [(page.page_url, image.url, image.data) for page in pages for image in page.images]
    expected = [("church_outdoor", f"church_outdoor/{key.decode()}", value) for value, key in churches.items()]
    expected += [("tower", f"tower/{key.decode()}", value) for value, key in towers.items()]
    assert sorted(found) == sorted(expected)
    assert [len(page.images) for page in pages] == [4] * 7 + [2] + [4, 1]
    assert [page.piece for page in pages] == [f"{i:05d}" for i in (*range(8), *range(2))]
    assert isinstance(SOURCE, Source)


def test_a_part_reads_only_its_keys_and_any_cut_gives_the_same_episodes(tmp_path):
    write(tmp_path / "tower_train_lmdb", 30)
    root = tmp_path / "tower_train_lmdb"
    parts = SOURCE.parts(root, SETTINGS)
    assert [(part.start, part.stop) for part in parts] == [(0, 12), (12, 24), (24, 30)]
    each = [list(SOURCE.pages(root, part, SETTINGS)) for part in reversed(parts)][::-1]
    assert [page for pages in each for page in pages] == pages_of(root, ReadConfig(images_per_label=4)) == pages_of(tmp_path)
    assert {page.page_url for page in each[0]} == {"tower"}


def test_two_parts_may_be_read_in_turns(tmp_path):
    write(tmp_path / "tower_train_lmdb", 24)
    first, second = (SOURCE.pages(tmp_path, part, SETTINGS) for part in SOURCE.parts(tmp_path, SETTINGS))
    turns = [page.piece for both in zip(first, second, strict=True) for page in both]
    assert turns == ["00000", "00003", "00001", "00004", "00002", "00005"]


def test_nothing_is_written_beside_the_database(tmp_path):
    write(tmp_path / "tower_train_lmdb", 9)
    (tmp_path / "tower_train_lmdb" / "lock.mdb").unlink()
    before = (tmp_path / "tower_train_lmdb" / "data.mdb").read_bytes()
    pages_of(tmp_path)
    assert [path.name for path in (tmp_path / "tower_train_lmdb").iterdir()] == ["data.mdb"]
    assert (tmp_path / "tower_train_lmdb" / "data.mdb").read_bytes() == before


def test_keys_of_any_bytes_and_values_of_any_size_have_a_row(tmp_path):
    write(tmp_path / "tower_train_lmdb", 0, [(b"\xff\x00key", b"v"), (b"empty", b""), (b"large", b"x" * 5001)])
    (page,) = pages_of(tmp_path)
    assert {image.url: (image.problem, image.data) for image in page.images} == {
        "tower/\\xff\x00key": ("", b"v"),
        "tower/empty": (Reason.EMPTY_FILE, None),
        "tower/large": (Reason.TOO_MANY_BYTES, None),
    }


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"garbage" * 5000, lambda data: b""])
def test_a_damaged_database_is_one_damaged_file_and_the_others_are_read(tmp_path, damage):
    write(tmp_path / "tower_train_lmdb", 200)
    write(tmp_path / "bridge_train_lmdb", 8)
    data = tmp_path / "tower_train_lmdb" / "data.mdb"
    data.write_bytes(damage(data.read_bytes()))
    *good, bad = SOURCE.parts(tmp_path, SETTINGS)
    assert [page.page_url for part in good for page in SOURCE.pages(tmp_path, part, SETTINGS)] == ["bridge", "bridge"]
    with pytest.raises(DamagedFile, match=r"tower_train_lmdb/data\.mdb"):
        list(SOURCE.pages(tmp_path, bad, SETTINGS))


def test_a_database_that_changed_since_it_was_listed_is_refused(tmp_path):
    write(tmp_path / "tower_train_lmdb", 20)
    parts = SOURCE.parts(tmp_path, SETTINGS)
    with lmdb.open(str(tmp_path / "tower_train_lmdb"), map_size=1 << 24) as environment, environment.begin(write=True) as writer:
        writer.delete(bytes.fromhex(parts[1].paths[1]))
    with pytest.raises(DamagedFile, match="has changed"):
        list(SOURCE.pages(tmp_path, parts[1], SETTINGS))
    assert SOURCE.parts(tmp_path, SETTINGS)[0].fingerprint != parts[0].fingerprint


def test_a_root_of_another_shape_is_an_error_that_says_what_is_there(tmp_path):
    (tmp_path / "church_outdoor_train_lmdb.zip").write_bytes(b"x")
    with pytest.raises(DataError, match=r"expected an extracted LMDB folder.*found church_outdoor_train_lmdb\.zip"):
        SOURCE.parts(tmp_path, SETTINGS)
    with pytest.raises(DataError, match="local disk"):
        SOURCE.parts(location("memory://lsun"), SETTINGS)
    write(tmp_path / "tower_train_lmdb", 1)
    write(tmp_path / "tower_val_lmdb", 1)
    with pytest.raises(DataError, match="two of 'tower'"):
        SOURCE.parts(tmp_path, SETTINGS)
    (tmp_path / "none").mkdir()
    write(tmp_path / "none" / "tower_val_lmdb", 0)
    with pytest.raises(DataError, match="without an entry"):
        SOURCE.parts(tmp_path / "none", SETTINGS)


def test_a_database_behind_a_symlink_out_of_the_root_is_never_opened(tmp_path):
    write(tmp_path / "tower_train_lmdb", 9)
    (tmp_path / "root" / "leak_lmdb").mkdir(parents=True)
    (tmp_path / "root" / "leak_lmdb" / "data.mdb").symlink_to(tmp_path / "tower_train_lmdb" / "data.mdb")
    (tmp_path / "root" / "door_lmdb").symlink_to(tmp_path / "tower_train_lmdb")
    (part,) = SOURCE.parts(tmp_path / "root", SETTINGS)
    with pytest.raises(DamagedFile, match="a symlink leaves the root"):
        list(SOURCE.pages(tmp_path / "root", part, SETTINGS))
