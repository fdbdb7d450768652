"""That a file of the crawl which may not be opened is a damaged file, and a storage that fails is not."""

import errno
import os
import tarfile

import lmdb
import pytest

from semantica.data.location import location
from semantica.episodes.pages import ReadConfig
from semantica.episodes.quarantine import DamagedFile
from semantica.episodes.sources import SOURCES, tables

SETTINGS = ReadConfig()
FILES = {"mmc4": "a.jsonl", "wit": "a.tsv", "warc": "a.warc", "webdataset": "a.tar", "obelics": "a.parquet"}


def last_part(name, root):
    return SOURCES[name].parts(root, SETTINGS)[-1]


@pytest.mark.parametrize("name", [*FILES, "lsun", "imagenet-train"])
def test_a_file_that_may_not_be_opened_is_a_damaged_file(tmp_path, name, monkeypatch):
    monkeypatch.setattr(tables, "MIN_CUT_BYTES", 1)  # so that its footer is read when it is listed
    path = tmp_path / FILES.get(name, "tower_val_lmdb/data.mdb")
    if name == "lsun":
        with lmdb.open(str(path.parent), map_size=1 << 20) as environment, environment.begin(write=True) as writer:
            writer.put(b"1", b"x")
    elif name == "imagenet-train":
        path = tmp_path / "ILSVRC2012_img_train.tar"
        (tmp_path / "n01440764.tar").write_bytes(bytes(10240))
        with tarfile.open(path, "w") as archive:
            archive.add(tmp_path / "n01440764.tar", "n01440764.tar")
    else:
        path.write_bytes(b"content")
    part = None if name in ("obelics", "lsun") else last_part(name, tmp_path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root may open every file")
    with pytest.raises(DamagedFile, match=f"{path.name}: cannot be read: Permission denied"):
        list(SOURCES[name].pages(tmp_path, part or last_part(name, tmp_path), SETTINGS))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("code", "expected"), [(errno.EACCES, DamagedFile), (errno.EIO, OSError), (errno.ETIMEDOUT, TimeoutError)])
def test_of_what_a_bucket_answers_only_a_refusal_is_about_the_file(name, code, expected, monkeypatch):
    root = location(f"memory://files-{name}")
    root.mkdir(parents=True, exist_ok=True)
    (root / FILES[name]).write_bytes(b"content")
    part = last_part(name, root)

    def refuse(path, *_, **__):
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(root.fs, "_open", refuse)
    with pytest.raises(expected, match=os.strerror(code)):
        list(SOURCES[name].pages(root, part, SETTINGS))
