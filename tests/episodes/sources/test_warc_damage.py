"""A WARC file that is cut, lies or is none is one damaged file, whatever its bytes."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semantica.episodes.quarantine import DamagedFile
from semantica.errors import DataError
from tests.episodes.sources.warc_files import PNG, Archive, pages_of, read


def whole():
    return Archive(False).page("http://s.org/", "a.png").picture("http://s.org/a.png", PNG + bytes(3000)).data


@pytest.mark.parametrize("compress", [False, True])
def test_an_archive_cut_anywhere_inside_a_record_is_one_damaged_file(tmp_path, compress):
    archive = Archive(compress).page("http://s.org/", "a.png").picture("http://s.org/a.png", PNG + b"x" * 500)
    data = archive.data
    last = data.rindex(b"\x1f\x8b\x08") if compress else data.rindex(b"WARC/1")
    for end in range(last + 12, len(data) - 4, 7):
        (tmp_path / "a.warc").write_bytes(data[:end])
        with pytest.raises(DamagedFile, match=r"a\.warc"):
            read(tmp_path)
    (tmp_path / "a.warc").write_bytes(data)
    assert len(read(tmp_path)) == 1


@pytest.mark.parametrize("length", [b"1", b"99999", b"-5", b"ten", b"9" * 30, b"9" * 5000, b""])
def test_a_record_that_lies_about_its_length_is_one_damaged_file(tmp_path, length):
    head, _, tail = whole().rpartition(b"Content-Length: ")
    (tmp_path / "a.warc").write_bytes(head + b"Content-Length: " + length + tail[tail.index(b"\r") :])
    with pytest.raises(DamagedFile, match=r"a\.warc"):
        read(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"no archive" * 100, b"\x1f\x8b no gzip", gzip.compress(b"no archive" * 100, mtime=0), b"<html>", bytes(9000)]
)
def test_another_format_is_a_damaged_file(tmp_path, content):
    (tmp_path / "a.warc").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"a\.warc"):
        read(tmp_path)


def test_a_damaged_gzip_member_is_one_damaged_file(tmp_path):
    data = bytearray(Archive().page("http://s.org/", "a.png").picture("http://s.org/a.png", PNG + bytes(range(256)) * 9).data)
    data[-100:-90] = bytes(10)
    (tmp_path / "a.warc.gz").write_bytes(data)
    with pytest.raises(DamagedFile, match=r"a\.warc\.gz"):
        read(tmp_path)


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
@settings(deadline=None, max_examples=300)
def test_an_archive_with_any_bytes_changed_is_read_or_damaged_but_no_crash(tmp_path_factory, at, new):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    data = bytearray(whole())
    at %= len(data)
    data[at : at + len(new)] = new
    (folder / "a.warc").write_bytes(data)
    try:
        pages = read(folder)
    except DamagedFile:
        return
    assert len(pages) <= 2


def test_an_archive_without_pages_has_none_and_no_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no WARC files"):
        read(tmp_path)
    assert pages_of(tmp_path, Archive()) == []
    assert pages_of(tmp_path, Archive().picture("http://s.org/a.png", PNG)) == []
