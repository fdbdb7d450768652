import gzip
import json
import zipfile

import pytest
from upath import UPath

from semantica.episodes.pages import ImageRef, Page, ReadConfig, Source
from semantica.episodes.quarantine import DamagedFile, Reason
from semantica.episodes.sources import mmc4
from semantica.episodes.sources.mmc4 import Mmc4Source
from semantica.errors import DataError


def document(url, *pictures):
    """A line as in docs_no_face_shard_0_v2.jsonl."""
    info = [
        {"image_name": f"{n:012x}.jpg", "raw_url": picture, "matched_text_index": n, "matched_sim": 0.27, "face_detections": None}
        for n, picture in enumerate(pictures)
    ]
    matrix = [[0.1] * 2 for _ in pictures]
    document = {"text_list": ["Ein Satz.", "Noch einer: ü"], "url": url, "image_info": info, "similarity_matrix": matrix}
    return json.dumps(document | {"could_have_url_duplicate": 0}) + "\n"


def remote(url):
    return ImageRef(url, problem=Reason.REMOTE_URL, detail="not fetched")


def read(root):
    source, settings = Mmc4Source(), ReadConfig()
    assert isinstance(source, Source)
    return [page for part in source.parts(root, settings) for page in source.pages(root, part, settings)]


@pytest.mark.parametrize("remotely", [False, True])
@pytest.mark.parametrize("packed", ["jsonl", "jsonl.gz", "jsonl.zip"])
def test_lines_become_pages_wherever_and_however_the_files_lie(tmp_path, remotely, packed):
    root = UPath(f"memory://mmc4-{packed}") if remotely else tmp_path
    root.mkdir(parents=True, exist_ok=True)
    text = (
        document("http://s.org/ä", "http://i.org/1.jpg", "http://i.org/2.jpg", "http://i.org/1.jpg")
        + "\n"
        + document("http://s.org/b")
    )
    name = f"docs_no_face_shard_0_v2.{packed}"
    with (root / name).open("wb") as stream:
        if packed == "jsonl.zip":
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("docs_no_face_shard_0_v2.jsonl", text)
                archive.writestr("__MACOSX/docs_no_face_shard_0_v2.jsonl", b"\0\5\26\7")
        else:
            stream.write(gzip.compress(text.encode()) if packed == "jsonl.gz" else text.encode())
    inside = name + ("/docs_no_face_shard_0_v2.jsonl" if packed == "jsonl.zip" else "")
    expected = [
        Page("http://s.org/ä", (remote("http://i.org/1.jpg"), remote("http://i.org/2.jpg")), piece=f"{inside}#1"),
        Page("http://s.org/b", (), piece=f"{inside}#3"),
    ]
    assert read(root) == expected
    assert read(root) == expected
    assert [page.page_url for page in read(root / name)] == ["http://s.org/ä", "http://s.org/b"]


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", "null", '{"url": "http://s.org"}', '{"image_info": {}}', "[" * 100_000, '{"image_info": ' + "1" * 5000 + "}"],
)
def test_a_line_that_is_no_document_is_one_unreadable_page(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(line + "\n" + document("http://s.org/a") + line + "\n")
    pages = read(tmp_path)
    assert [page.problem for page in pages] == [Reason.PAGE_UNREADABLE, "", Reason.PAGE_UNREADABLE]
    assert [page.page_url for page in pages] == ["a.jsonl#1", "http://s.org/a", "a.jsonl#3"]
    assert "expected" in pages[0].detail


def test_a_line_that_is_too_long_is_one_unreadable_page(tmp_path, monkeypatch):
    lines = mmc4.lines
    monkeypatch.setattr(mmc4, "lines", lambda stream: lines(stream, 1000))
    text = document("http://s.org/a") + "x" * 5000 + "\n" + "y" * 1001 + "\n" + document("http://s.org/b") + "z" * 2000
    (tmp_path / "a.jsonl").write_text(text)
    pages = read(tmp_path)
    assert [page.page_url for page in pages] == ["http://s.org/a", "a.jsonl#2", "a.jsonl#3", "http://s.org/b", "a.jsonl#5"]
    assert [page.problem for page in pages][1:3] == [Reason.PAGE_UNREADABLE] * 2


def test_pictures_and_pages_without_urls_are_kept(tmp_path):
    line = {
        "url": None,
        "image_info": [{"raw_url": 3}, {"image_name": "x"}, "y", None, {"raw_url": "data:,x"}, {"raw_url": "http://i.org/\ud800"}],
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    (page,) = read(tmp_path)
    assert (page.page_url, page.has_url) == ("a.jsonl#1", False)
    bad = [Reason.BAD_URL] * 4
    assert [image.problem for image in page.images] == [*bad, Reason.DATA_URL, Reason.REMOTE_URL]
    assert page.images[-1].url == "http://i.org/\\ud800"


@pytest.mark.parametrize("content", [b"", b"\0\1\2" * 1000, b"PK\3\4 no zip", b"\x1f\x8b no gzip", b"a,b\n1,2\n" * 1000])
def test_another_format_is_a_damaged_file(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"a\.jsonl"):
        read(tmp_path)


def test_a_truncated_archive_is_a_damaged_file(tmp_path):
    text = "".join(document(f"http://s.org/{n}", f"http://i.org/{n}") for n in range(100)).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text)[:-20])
    with pytest.raises(DamagedFile, match=r"a\.jsonl\.gz: Compressed file ended"):
        read(tmp_path)
    (tmp_path / "a.jsonl.gz").unlink()
    with zipfile.ZipFile(tmp_path / "a.jsonl.zip", "w") as archive:
        archive.writestr("a.jsonl", text)
    packed = (tmp_path / "a.jsonl.zip").read_bytes()
    (tmp_path / "a.jsonl.zip").write_bytes(packed[:-10])
    with pytest.raises(DamagedFile):
        read(tmp_path)
    (tmp_path / "a.jsonl.zip").write_bytes(packed.replace(b"i.org/50", b"i.org/5x"))
    with pytest.raises(DamagedFile, match="CRC"):
        read(tmp_path)


def test_a_zip_without_lines_is_a_damaged_file_and_no_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no MMC4 files"):
        read(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.jsonl.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(DamagedFile, match="a file of JSON lines"):
        read(tmp_path)
