"""Pages of a WARC file with their pictures: joined by URL, decoded, through redirects and revisits."""

import gzip
import zlib

import brotli
import pytest
from fastwarc.stream_io import GzipWriter
from fastwarc.warc import WarcRecord, WarcRecordType
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from semantica.episodes.pages import ImageRef, Page
from semantica.episodes.quarantine import Reason
from semantica.episodes.sources.join import url_key
from tests.episodes.sources.warc_files import PNG, Archive, pages_of, pictures, read

MISSING = "no record of this URL within the join window of the page"


@pytest.mark.parametrize("remotely", [False, True])
@pytest.mark.parametrize("compress", [False, True])
def test_pages_and_pictures_are_joined_by_url_wherever_the_archives_lie(tmp_path, remotely, compress):
    root = UPath(f"memory://warc-{compress}") if remotely else tmp_path
    name = "crawl/00000.warc.gz" if compress else "crawl/00000.warc"
    (root / "crawl").mkdir(parents=True, exist_ok=True)
    archive = Archive(compress).picture("http://i.org/before.png", PNG + b"1")
    archive.page(
        "http://s.org/dir/ä", "http://i.org/before.png", "../after.png?x=1#part", "/missing.png", "http://i.org/before.png"
    )
    archive.picture("http://s.org/after.png?x=1", PNG + b"2").page("http://s.org/none")
    (root / name).write_bytes(archive.data)
    first, second = read(root)
    assert first == Page(
        "http://s.org/dir/ä",
        (
            ImageRef("http://i.org/before.png", data=PNG + b"1"),
            ImageRef("http://s.org/after.png?x=1", data=PNG + b"2"),
            ImageRef("http://s.org/missing.png", problem=Reason.NOT_IN_ARCHIVE, detail=MISSING),
        ),
        piece=first.piece,
    )
    assert second == Page("http://s.org/none", (), piece=second.piece)
    assert first.piece.startswith(f"{name}@")
    assert first.piece != second.piece
    assert read(root) == [first, second]
    assert [page.images for page in read(root / name)] == [first.images, second.images]


def test_an_archive_of_fastwarc_is_read(tmp_path):
    html = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<img src=/a.png>"
    png = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n" + PNG
    with (tmp_path / "a.warc.gz").open("wb") as file, GzipWriter(file) as stream:
        for url, body in (("http://s.org/", html), ("http://s.org/a.png", png)):
            record = WarcRecord()
            record.init_headers(WarcRecordType.response)
            record.headers["WARC-Target-URI"] = url
            record.headers["Content-Type"] = "application/http; msgtype=response"
            record.set_bytes_content(body)
            record.write(stream)
    (page,) = read(tmp_path)
    assert pictures(page) == [("http://s.org/a.png", PNG)]


def chunked(body, size=7):
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


HTML = "<meta charset=utf-8><img src='/bild-ü.png'>".encode()
RAW_DEFLATE = zlib.compressobj(wbits=-15)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (chunked(gzip.compress(HTML, mtime=0)), {"Transfer-Encoding": "chunked", "Content-Encoding": "gzip"}),
        (chunked(HTML), {"Transfer-Encoding": "chunked"}),
        (HTML, {"Transfer-Encoding": "chunked"}),  # decoded by the crawler, under the server's headers
        (HTML, {"Content-Encoding": "gzip"}),
        (HTML, {"Content-Encoding": "br"}),
        (brotli.compress(HTML), {"Content-Encoding": "br"}),
        (zlib.compress(HTML), {"Content-Encoding": "deflate"}),
        (RAW_DEFLATE.compress(HTML) + RAW_DEFLATE.flush(), {"Content-Encoding": "deflate"}),
        (gzip.compress(brotli.compress(HTML), mtime=0), {"Content-Encoding": "br, gzip"}),
        (gzip.compress(HTML + b" " * 5000, mtime=0)[:-12], {"Content-Encoding": "GZIP"}),
        (HTML, {"Content-Encoding": "identity"}),
    ],
)
def test_bodies_are_decoded_and_the_records_after_them_are_read(tmp_path, body, headers):
    archive = Archive().response("http://s.org/", "text/html", body, *headers.items())
    archive.picture("http://s.org/bild-%C3%BC.png", PNG)
    (page,) = pages_of(tmp_path, archive)
    assert pictures(page) == [("http://s.org/bild-ü.png", PNG)]


def test_an_unknown_encoding_is_a_problem_of_the_page_or_the_picture_alone(tmp_path):
    archive = Archive().response("http://s.org/bad", "text/html", HTML, ("Content-Encoding", "secret"))
    archive.response("http://s.org/a.png", "image/png", PNG, ("Content-Encoding", "secret")).page("http://s.org/good", "a.png")
    bad, good = pages_of(tmp_path, archive)
    assert (bad.problem, "Content-Encoding" in bad.detail) == (Reason.PAGE_UNREADABLE, True)
    assert pictures(good) == [("http://s.org/a.png", Reason.UNDECODABLE)]


def test_the_encoding_of_http_counts_more_than_the_one_of_the_page(tmp_path):
    encodings = {"shift_jis": "shift_jis", "ISO-8859-1": "cp1252", "nonsense": "utf-8", "base64": "utf-8", "punycode": "utf-8"}
    for charset, encoding in encodings.items():
        text = "絵" if charset == "shift_jis" else "é"
        body = f'<meta charset=utf-8><img src="/{text}.png">'.encode(encoding)
        (page,) = pages_of(tmp_path, Archive().response("http://s.org/", f'text/html;charset="{charset}"', body))
        assert [image.url for image in page.images] == [f"http://s.org/{text}.png"], charset


def test_the_base_of_a_page_and_its_best_candidate_count(tmp_path):
    archive = Archive()
    body = b"""<base href="//cdn.org/dir/"><img src="small.png" srcset="large.png 2000w, middle.png 1000w">
        <img src="only.png"><img src="data:image/png;base64,AAAA"><img src="http://[">"""
    archive.response("https://s.org/", "application/xhtml+xml", body)
    archive.picture("https://cdn.org/dir/middle.png", PNG).picture("https://cdn.org/dir/small.png", PNG)
    (page,) = pages_of(tmp_path, archive)
    assert pictures(page) == [
        ("https://cdn.org/dir/middle.png", PNG),
        ("https://cdn.org/dir/only.png", Reason.NOT_IN_ARCHIVE),
        ("data:image/png;base64,AAAA", Reason.DATA_URL),
        ("http://[", Reason.BAD_URL),
    ]


def test_urls_that_mean_the_same_meet(tmp_path):
    archive = Archive().page("http://s.org/", "https://I.org:443/%c3%bc.png", "http://ü.org/a b.png", "https://s.org/scheme.png")
    archive.picture("https://i.org/ü.png", b"1").picture("http://xn--tda.org/a%20b.png", b"2").picture(
        "<http://s.org/scheme.png>", b"3"
    )
    (page,) = pages_of(tmp_path, archive)
    assert [data for _, data in pictures(page)] == [b"1", b"2", b"3"]


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=300)
def test_the_key_of_a_key_is_the_key(text):
    for url in (text, f"http://s.org/{text}", f"https://{text}/"):
        assert url_key(url_key(url)) == url_key(url)


def test_redirects_and_revisits_lead_to_the_picture(tmp_path):
    archive = Archive().picture("http://i.org/end.png", PNG).redirect("http://s.org/1.png", "/2.png")
    archive.page("http://s.org/", "1.png", "again.png", "loop.png", "nowhere.png")
    archive.redirect("http://s.org/2.png", "http://i.org/end.png", "302 Found")
    archive.revisit("http://s.org/again.png", "http://i.org/end.png")
    archive.redirect("http://s.org/loop.png", "http://s.org/pool.png").redirect("http://s.org/pool.png", "http://s.org/loop.png")
    archive.redirect("http://s.org/nowhere.png", "mailto:x")
    (page,) = pages_of(tmp_path, archive)
    assert pictures(page) == [
        ("http://s.org/1.png", PNG),
        ("http://s.org/again.png", PNG),
        ("http://s.org/loop.png", Reason.NOT_IN_ARCHIVE),
        ("http://s.org/nowhere.png", Reason.NOT_IN_ARCHIVE),
    ]


@pytest.mark.parametrize(("hops", "found"), [(5, True), (6, False)])
def test_at_most_five_redirects_are_followed(tmp_path, hops, found):
    archive = Archive().page("http://s.org/", "0.png")
    for hop in range(hops):
        archive.redirect(f"http://s.org/{hop}.png", f"{hop + 1}.png")
    (page,) = pages_of(tmp_path, archive.picture(f"http://s.org/{hops}.png", PNG))
    assert pictures(page) == [("http://s.org/0.png", PNG if found else Reason.NOT_IN_ARCHIVE)]


def test_only_whole_answers_of_the_right_types_count(tmp_path):
    archive = Archive().page("http://s.org/", "404.png", "octet", "text", "none", "resource.png", "twice.png")
    archive.response("http://s.org/404.png", "image/png", PNG, status="404 Not Found")
    archive.response("http://s.org/404.html", "text/html", HTML, status="404 Not Found")
    archive.response("http://s.org/octet", "application/octet-stream", PNG).response("http://s.org/text", "text/plain", PNG)
    archive.response("http://s.org/none", "", b"\xff\xd8\xff\xe0").response(
        "http://s.org/script.js", "application/octet-stream", b"x"
    )
    archive.record("http://s.org/resource.png", "resource", "image/png", PNG)
    archive.record("http://s.org/resource.html", "resource", "text/html; charset=utf-8", b"<img src=octet>")
    archive.record("dns:s.org", "response", "text/dns", b"1.2.3.4").record("http://s.org/", "metadata", "text/plain", b"x")
    archive.picture("http://s.org/twice.png", b"old").picture("http://s.org/twice.png", b"new")
    page, resource = pages_of(tmp_path, archive)
    assert [data for _, data in pictures(page)] == [
        Reason.NOT_IN_ARCHIVE, PNG, Reason.NOT_IN_ARCHIVE, b"\xff\xd8\xff\xe0", PNG, b"new",
    ]  # fmt: skip
    assert pictures(resource) == [("http://s.org/octet", PNG)]


def test_what_robots_are_told_is_kept_with_the_page(tmp_path):
    head = '<meta name="robots" content="NoIndex, noimageai">'
    headers = [
        ("X-Robots-Tag", "noai, max-snippet:5"),
        ("X-Robots-Tag", "otherbot: nofollow, noarchive"),
        ("X-Robots-Tag", "GPTBot: nosnippet"),
    ]
    (page,) = pages_of(tmp_path, Archive().page("http://s.org/", head=head, headers=headers))
    assert page.opt_out == ("noai", "max-snippet:5", "nosnippet", "noindex", "noimageai")
