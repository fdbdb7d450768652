import csv
import gzip
import io

import pytest
from upath import UPath

from semantica.episodes.pages import ImageRef, Page, ReadConfig, Source
from semantica.episodes.quarantine import DamagedFile, Reason
from semantica.episodes.sources.wit import WitSource
from semantica.errors import DataError

# The columns of wit_v1.train.all-*.tsv.gz, in their order.
COLUMNS = [
    "language", "page_url", "image_url", "page_title", "section_title", "hierarchical_section_title",
    "caption_reference_description", "caption_attribution_description", "caption_alt_text_description", "mime_type",
    "original_height", "original_width", "is_main_image", "attribution_passes_lang_id", "page_changed_recently",
    "context_page_description", "context_section_description",
]  # fmt: skip


def row(page, image, language="en", context='Words, "quoted"\nand\tbroken.'):
    values = {
        "language": language,
        "page_url": page,
        "image_url": image,
        "context_page_description": context,
        "mime_type": "image/jpeg",
    }
    return [values.get(column, "") for column in COLUMNS]


def tsv(*rows, header=COLUMNS):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", quoting=csv.QUOTE_MINIMAL, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


def remote(url):
    return ImageRef(url, problem=Reason.REMOTE_URL, detail="not fetched")


def read(root, **settings):
    source, settings = WitSource(), ReadConfig(**settings)
    assert isinstance(source, Source)
    return [page for part in source.parts(root, settings) for page in source.pages(root, part, settings)]


@pytest.mark.parametrize("remotely", [False, True])
@pytest.mark.parametrize("packed", ["tsv", "tsv.gz"])
def test_rows_of_a_page_are_gathered_wherever_the_files_lie(tmp_path, remotely, packed):
    root = UPath(f"memory://wit-{packed}") if remotely else tmp_path
    root.mkdir(parents=True, exist_ok=True)
    a, b, c = "https://en.wikipedia.org/wiki/A", "https://de.wikipedia.org/wiki/Ä", "https://en.wikipedia.org/wiki/C"
    data = tsv(
        row(a, "http://i.org/1"),
        row(b, "http://i.org/1", "de"),
        row(a, "http://i.org/2"),
        row(c, "http://i.org/3"),
        row(a, "http://i.org/1"),
    )
    name = f"wit_v1.train.all-00000-of-00010.{packed}"
    (root / name).write_bytes(gzip.compress(data) if packed == "tsv.gz" else data)
    # Each row takes two lines, for the break in its context.
    expected = [
        Page(b, (remote("http://i.org/1"),), piece=f"{name}#4"),
        Page(c, (remote("http://i.org/3"),), piece=f"{name}#8"),
        Page(a, (remote("http://i.org/1"), remote("http://i.org/2")), piece=f"{name}#2"),
    ]
    assert read(root) == expected
    assert read(root) == expected


def test_a_page_that_returns_after_the_window_is_another_piece(tmp_path):
    many = [row(f"http://s.org/{n:06d}", f"http://i.org/{n:06d}", context="") for n in range(2000)]
    first, last = row("http://s.org/a", "http://i.org/a", context=""), row("http://s.org/a", "http://i.org/b", context="")
    (tmp_path / "a.tsv").write_bytes(tsv(first, *many, last))
    wide, narrow = read(tmp_path), read(tmp_path, join_window_mb=1)
    assert [len(page.images) for page in wide if page.page_url == "http://s.org/a"] == [2]
    pieces = [page for page in narrow if page.page_url == "http://s.org/a"]
    assert [(page.images[0].url, page.piece) for page in pieces] == [
        ("http://i.org/a", "a.tsv#2"),
        ("http://i.org/b", "a.tsv#2003"),
    ]
    assert len(wide) == 2001
    assert len(narrow) == 2002


def test_rows_that_are_no_rows_are_unreadable_pages(tmp_path):
    good = row("http://s.org", "http://i.org/1", context="")
    long = row("http://s.org", "http://i.org/2", context="x" * (1 << 21))
    data = tsv(good, good[:5], long, row("", "http://i.org/3", context=""), row("http://s.org", "", context=""))
    (tmp_path / "a.tsv").write_bytes(data + b"\n\xff\xfe\t" + "\t".join(good[1:]).encode())
    pages = read(tmp_path)
    assert [(page.page_url, page.problem, page.has_url) for page in pages] == [
        ("a.tsv#3", Reason.PAGE_UNREADABLE, False),
        ("a.tsv#4", Reason.PAGE_UNREADABLE, False),
        ("a.tsv#5", "", False),
        ("http://s.org", "", True),
    ]
    assert "expected 17 columns, got 5" in pages[0].detail
    assert "field larger than field limit" in pages[1].detail
    assert pages[2].images == (remote("http://i.org/3"),)
    assert [image.problem for image in pages[3].images] == [Reason.REMOTE_URL, Reason.BAD_URL]


def test_a_quotation_mark_that_is_never_closed_costs_at_most_a_field_of_rows(tmp_path):
    good = "\t".join(row("http://s.org/a", "http://i.org/1", context="")) + "\n"
    rows = [good] * 5 + ['"' + good] + [good.replace("/a", f"/{n}") for n in range(40_000)]
    (tmp_path / "a.tsv").write_text("\t".join(COLUMNS) + "\n" + "".join(rows))
    pages = read(tmp_path)
    bad = [page for page in pages if page.problem]
    assert [page.page_url for page in bad] == ["a.tsv#7"]
    assert pages[-1].page_url == "http://s.org/39999"
    assert len(pages) > 20_000


@pytest.mark.parametrize("content", [b"", b"\n\n", b"a\tb\n1\t2\n", b"\0" * 5000, b"\x1f\x8b no gzip"])
def test_another_format_is_a_damaged_file(tmp_path, content):
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"a\.tsv"):
        read(tmp_path)


def test_a_truncated_file_is_damaged_when_compressed_and_else_has_one_bad_row(tmp_path):
    data = tsv(*(row(f"http://s.org/{n}", "http://i.org", context="") for n in range(100)))
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(data)[:-10])
    with pytest.raises(DamagedFile, match="Compressed file ended"):
        read(tmp_path)
    (tmp_path / "a.tsv.gz").unlink()
    (tmp_path / "b.tsv").write_bytes(data[:-20])
    pages = read(tmp_path)
    assert [page.page_url for page in pages if page.problem] == ["b.tsv#101"]
    assert len(pages) == 100


def test_a_header_alone_has_no_pages_and_no_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no WIT files"):
        read(tmp_path)
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbf" + tsv(header=["page_url", "image_url"]))
    assert read(tmp_path) == []
