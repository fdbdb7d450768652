import gzip
import io
import json
import logging
import tarfile

import pytest
import webdataset
from upath import UPath

from semantica.episodes.pages import ImageRef, Page, ReadConfig, Source
from semantica.episodes.quarantine import DamagedFile, Reason
from semantica.episodes.sources.webdataset import WebDatasetSource
from semantica.errors import DataError


def downloaded(key, url, page=None, content=None, **facts):
    """A sample as img2dataset 1.45 writes it, with or without the extra column `page_url`."""
    facts = {"url": url, "key": key, "status": "success", "error_message": None, "width": 3, "height": 2, "exif": "{}", **facts}
    if page is not None:
        facts["page_url"] = page
    sample = {"__key__": key, "txt": "eine Unterschrift: ü", "json": json.dumps(facts, indent=4)}
    return sample if content is None else {**sample, "jpg": content}


def packed(samples, compress=False):
    stream = io.BytesIO()
    writer = webdataset.TarWriter(stream, encoder=False, mtime=0)
    for sample in samples:
        writer.write(
            {name: value.encode() if isinstance(value, str) and name != "__key__" else value for name, value in sample.items()}
        )
    writer.close()
    return gzip.compress(stream.getvalue()) if compress else stream.getvalue()


def read(root, **settings):
    source, settings = WebDatasetSource(), ReadConfig(**settings)
    assert isinstance(source, Source)
    return [page for part in source.parts(root, settings) for page in source.pages(root, part, settings)]


def content_of(image):
    """The bytes of a picture, as ingest reads them."""
    if image.data is not None:
        return image.data
    with UPath(image.path).open("rb") as stream:
        stream.seek(image.offset)
        return stream.read(image.length or -1)


SAMPLES = (
    downloaded("000000000", "http://i.org/0.jpg", "http://s.org/ä", b"zero"),
    downloaded("000000001", "http://i.org/1.jpg", "http://s.org/b", b"one" * 1000),
    downloaded("000000002", "http://i.org/2.jpg", "http://s.org/ä", b"two" * 512),
)


@pytest.mark.parametrize("remotely", [False, True])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
def test_pictures_of_a_page_are_gathered_wherever_and_however_the_files_lie(tmp_path, remotely, suffix):
    root = UPath(f"memory://webdataset-{suffix}") if remotely else tmp_path
    root.mkdir(parents=True, exist_ok=True)
    (root / f"00000.{suffix}").write_bytes(packed(SAMPLES, suffix != "tar"))
    pages = read(root)
    found = [(page.page_url, page.has_url, [(image.url, content_of(image)) for image in page.images]) for page in pages]
    assert found == [
        ("http://s.org/b", True, [("http://i.org/1.jpg", b"one" * 1000)]),
        ("http://s.org/ä", True, [("http://i.org/0.jpg", b"zero"), ("http://i.org/2.jpg", b"two" * 512)]),
    ]
    assert {bool(image.path) for page in pages for image in page.images} == {suffix == "tar"}
    assert read(root) == pages
    assert len({page.piece for page in pages}) == 2


def test_one_page_in_two_tars_is_two_pieces(tmp_path):
    for name in ("00000.tar", "00001.tar"):
        (tmp_path / name).write_bytes(packed(SAMPLES[:1]))
    pages = read(tmp_path)
    assert [page.page_url for page in pages] == ["http://s.org/ä"] * 2
    assert len({page.piece for page in pages}) == 2


def test_without_a_page_url_each_sample_is_a_page_and_the_log_says_so(tmp_path, caplog):
    samples = [downloaded(f"{n:09d}", f"http://i.org/{n}.jpg", content=b"%d" % n) for n in range(3)]
    (tmp_path / "00000.tar").write_bytes(packed(samples))
    with caplog.at_level(logging.WARNING):
        pages = read(tmp_path)
    assert [(page.page_url, page.has_url) for page in pages] == [(f"00000.tar/{n:09d}", False) for n in range(3)]
    assert [[image.url for image in page.images] for page in pages] == [[f"http://i.org/{n}.jpg"] for n in range(3)]
    assert "00000.tar: 3 samples carry no page URL" in caplog.text
    assert "save_additional_columns" in caplog.text


def test_plain_samples_without_json_are_called_by_their_names(tmp_path):
    samples = [
        {"__key__": "train/a", "input.png": b"in", "target.PNG": b"out", "cls": "7"},
        {"__key__": "train/b", "txt": "no picture"},
        {"__key__": "train/a", "jpg": b"again"},
        {"__key__": "c", "webp": b""},
    ]
    (tmp_path / "x.tar").write_bytes(packed(samples))
    pages = read(tmp_path)
    found = [(page.page_url, [(image.url, content_of(image)) for image in page.images]) for page in pages]
    assert found == [
        ("x.tar/train/a", [("x.tar/train/a.input.png", b"in"), ("x.tar/train/a.target.PNG", b"out")]),
        ("x.tar/train/b", []),
        ("x.tar/train/a", [("x.tar/train/a.jpg", b"again")]),
        ("x.tar/c", [("x.tar/c.webp", b"")]),
    ]
    assert len({page.piece for page in pages}) == 4


def test_a_failed_download_is_a_picture_to_fetch_on_its_page(tmp_path):
    failed = downloaded(
        "000000003", "http://i.org/3.jpg", "http://s.org/b", status="failed_to_download", error_message="HTTP Error 404"
    )
    (tmp_path / "00000.tar").write_bytes(packed([SAMPLES[1], failed]))
    (page,) = read(tmp_path)
    assert page.images[1] == ImageRef(
        "http://i.org/3.jpg", problem=Reason.REMOTE_URL, detail="not fetched; failed_to_download HTTP Error 404"
    )


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\xff", " " * (5 << 20)])
def test_a_sample_whose_json_is_broken_is_one_unreadable_page(tmp_path, text):
    samples = [{"__key__": "a", "jpg": b"x", "json": text.encode("latin-1")}, SAMPLES[0]]
    (tmp_path / "a.tar").write_bytes(packed(samples))
    bad, good = read(tmp_path)
    assert (bad.page_url, bad.problem, bad.images) == ("a.tar/a", Reason.PAGE_UNREADABLE, ())
    assert good.page_url == "http://s.org/ä"


def test_links_and_devices_are_refused_and_folders_passed_over(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (
            ("folder", tarfile.DIRTYPE),
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("fifo", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name in ("../../evil.jpg", "/root.jpg", ".hidden", "no-suffix"):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    pages = read(tmp_path)
    refused = [page for page in pages if page.problem]
    assert [page.page_url.partition("@")[0] for page in refused] == ["a.tar/link.jpg", "a.tar/hard.jpg", "a.tar/fifo"]
    assert {page.problem for page in refused} == {Reason.PAGE_UNREADABLE}
    assert [content_of(image) for page in pages for image in page.images] == [b"x", b"x"]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_picture_that_is_too_large_is_not_read(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(packed(SAMPLES[1:], suffix == "tar.gz"))
    pages = read(tmp_path, max_image_bytes=1600)
    problem = [(image.url, image.problem, image.detail) for page in pages for image in page.images if image.problem]
    assert problem == [("http://i.org/1.jpg", Reason.TOO_MANY_BYTES, "expected at most 1600 bytes, got 3000")]


def test_a_compressed_tar_holds_no_more_than_the_window(tmp_path):
    megabyte = bytes(1 << 20)
    samples = [downloaded(f"{n:09d}", f"http://i.org/{n}.jpg", f"http://s.org/{n % 4}", megabyte) for n in range(16)]
    (tmp_path / "a.tar.gz").write_bytes(packed(samples, compress=True))
    assert [len(page.images) for page in read(tmp_path)] == [4, 4, 4, 4]
    pages = read(tmp_path, join_window_mb=2)
    assert sum(len(page.images) for page in pages) == 16
    assert max(len(page.images) for page in pages) <= 2
    assert len({(page.page_url, page.piece) for page in pages}) == len(pages)
    # Of one sample that alone is larger, what fits.
    (tmp_path / "a.tar.gz").write_bytes(packed([{"__key__": "a", "0.jpg": megabyte, "1.jpg": megabyte}], compress=True))
    (page,) = read(tmp_path, join_window_mb=1)
    assert [image.problem for image in page.images] == ["", Reason.TOO_MANY_BYTES]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("end", [0.3, 0.5, 0.9])
def test_a_truncated_tar_is_a_damaged_file(tmp_path, suffix, end):
    data = packed(SAMPLES, suffix == "tar.gz")
    content = data if suffix == "tar.gz" else data.rstrip(b"\0")
    (tmp_path / f"a.{suffix}").write_bytes(content[: int(end * len(content))])
    with pytest.raises(DamagedFile, match=r"a\.tar"):
        read(tmp_path)


def test_a_tar_that_stops_between_two_members_is_a_damaged_file(tmp_path):
    data = packed(SAMPLES)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        offsets = [member.offset for member in archive][1:]
    for offset in offsets:
        (tmp_path / "a.tar").write_bytes(data[:offset])
        with pytest.raises(DamagedFile, match="nor the mark of the end"):
            read(tmp_path)
        (tmp_path / "a.tar").write_bytes(data[:offset] + b"garbage!" * 64 + data[offset + 512 :])
        with pytest.raises(DamagedFile, match="nor the mark of the end"):
            read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no tar" * 1000, b"\x1f\x8b no gzip", gzip.compress(b"no tar" * 1000, mtime=0)])
def test_another_format_is_a_damaged_file(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"a\.tar"):
        read(tmp_path)


def test_an_extended_header_that_claims_a_gigabyte_is_a_damaged_file(tmp_path):
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "a.tar").write_bytes(packed(SAMPLES[:1])[:-10240] + member.tobuf() + bytes(1024))
    with pytest.raises(DamagedFile, match="header of at most"):
        read(tmp_path)


def test_an_empty_tar_has_no_pages_and_no_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no tar files"):
        read(tmp_path)
    (tmp_path / "a.tar").write_bytes(packed([]))
    assert read(tmp_path) == []


def test_names_may_be_long_and_of_any_script(tmp_path):
    key = "ordner/" + "ü" * 200
    (tmp_path / "ä.tar").write_bytes(packed([{"__key__": key, "jpg": b"x"}]))
    (page,) = read(tmp_path)
    assert page == Page(f"ä.tar/{key}", page.images, piece=page.piece, has_url=False)
    assert content_of(page.images[0]) == b"x"
