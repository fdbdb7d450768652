"""Files that are there whole or not at all, on a disk and on an object store, and the lock of a file system."""

import os
import threading
from pathlib import Path

import pytest

from semantica.data.durable import atomic_file, create, try_lock, write_atomically
from semantica.data.location import file_sha256, location


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    """An empty folder, on disk and on an S3 server."""
    if request.param == "local":
        return tmp_path / "data"
    return location(f"{request.getfixturevalue('s3')}/{tmp_path.name}")


def test_a_file_is_written_whole_or_not_at_all(folder):
    write_atomically(folder / "a.json", b"first")
    write_atomically(folder / "a.json", b"second")
    assert (folder / "a.json").read_bytes() == b"second"
    with atomic_file(folder / "sub" / "b.bin") as path:
        path.write_bytes(b"123")
    assert file_sha256(folder / "sub" / "b.bin") == "a665a45920422f9d417e4867efdc4fb8a04a1f3fff1fa07e998e86f7f7a27ae3"

    def interrupted():
        with atomic_file(folder / "c.bin") as path:
            path.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sorted(p.name for p in folder.iterdir()) == ["a.json", "sub"]


def test_of_many_creators_at_once_one_wins(folder):
    wins, barrier = [], threading.Barrier(8)

    def race(number):
        barrier.wait()
        if create(folder / "lease", str(number).encode()):
            wins.append(number)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert (folder / "lease").read_bytes() == str(wins[0]).encode()


def test_an_atomic_write_replaces_whole_and_leaves_no_partial(tmp_path):
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert [(p.name, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()] == [("file", b"two")]


def test_an_atomic_write_that_fails_leaves_no_partial_and_the_old_file(tmp_path):
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", b"data")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    write_atomically(tmp_path / "file", b"old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "file", None)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == {"file": b"old"}


def test_a_lock_is_for_one_holder_or_for_several_that_share_it_until_the_file_is_closed(tmp_path: Path):
    first, second, third = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(3))
    assert try_lock(first)
    assert try_lock(second) is False
    assert try_lock(second, shared=True) is False
    os.close(first)
    assert try_lock(second, shared=True)
    assert try_lock(third, shared=True)
    assert try_lock(third) is False
    os.close(second)
    assert try_lock(third)
    os.close(third)
