"""What pages a tree of files gives, and that nothing in a tree leads out of it."""

import os
import pickle

import pytest

from semantica.episodes.quarantine import Reason
from semantica.episodes.sources import SOURCES
from semantica.episodes.sources.folder import folder_pages
from semantica.episodes.sources.html import MAX_PAGE_BYTES, html_files, html_pages, read_page
from semantica.episodes.sources.srcset import Candidate, parse_srcset
from semantica.errors import DataError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def page(root, html, name="index.html"):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(html if isinstance(html, bytes) else html.encode())
    return read_page(root, name)


def urls(page):
    return [image.url for image in page.images]


def problems(page):
    return [image.problem for image in page.images]


@pytest.mark.parametrize("source", SOURCES)
def test_a_missing_or_empty_root_is_an_error_that_names_it(source, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        SOURCES[source](tmp_path / "nowhere")
    touch(tmp_path, "a/readme.txt")
    with pytest.raises(DataError, match=f"no p.* under {tmp_path}"):
        SOURCES[source](tmp_path)


# --- folder ---


def test_every_folder_that_holds_pictures_is_a_page_in_order(tmp_path):
    touch(tmp_path, "b/2.png", "b/10.PNG", "b/notes.txt", "a/deep/x.jpg", "z.webp", "none/readme.md")
    pages = folder_pages(tmp_path)
    assert [p.page_url for p in pages] == [".", "a/deep", "b"]
    assert [urls(p) for p in pages] == [["z.webp"], ["a/deep/x.jpg"], ["b/10.PNG", "b/2.png"]]
    assert all(os.path.isfile(i.path) and not i.problem for p in pages for i in p.images)
    assert pages == folder_pages(tmp_path) == pickle.loads(pickle.dumps(pages))  # noqa: S301 - made here


def test_symlinks_out_of_the_root_are_refused_and_rings_end(tmp_path):
    touch(tmp_path, "outside/secret.png", "root/a/x.png")
    root = tmp_path / "root"
    (root / "a" / "leak.png").symlink_to(tmp_path / "outside" / "secret.png")
    (root / "a" / "inside.png").symlink_to(root / "a" / "x.png")
    (root / "a" / "broken.png").symlink_to(root / "nothing.png")
    (root / "a" / "ring.png").symlink_to(root / "a" / "ring.png")
    (root / "whole").symlink_to(tmp_path / "outside")
    (root / "a" / "again").symlink_to(root)
    (found,) = folder_pages(root)
    assert dict(zip(urls(found), problems(found), strict=True)) == {
        "a/broken.png": Reason.MISSING_FILE,
        "a/inside.png": "",
        "a/leak.png": Reason.OUTSIDE_ROOT,
        "a/ring.png": Reason.BAD_URL,
        "a/x.png": "",
    }


def test_names_that_are_not_utf8_are_shown_and_can_be_opened(tmp_path):
    (tmp_path / "p").mkdir()
    with open(os.fsencode(tmp_path / "p") + b"/caf\xe9.png", "wb"):
        pass
    (found,) = folder_pages(tmp_path)
    assert urls(found) == ["p/caf\\xe9.png"]
    assert os.path.isfile(found.images[0].path)


def test_a_pipe_with_a_pictures_name_is_never_opened(tmp_path):
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert problems(folder_pages(tmp_path)[0]) == ["", Reason.MISSING_FILE]


# --- srcset ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a.png", [("a.png", 0, 1.0)]),
        ("a.png 1x, b.png 2x", [("a.png", 0, 1.0), ("b.png", 0, 2.0)]),
        ("a.png 300w,b.png 600w", [("a.png", 300, 1.0), ("b.png", 600, 1.0)]),
        (" , a.png , b.png 1.5x ,", [("a.png", 0, 1.0), ("b.png", 0, 1.5)]),
        ("a.png, b.png 2x", [("a.png", 0, 1.0), ("b.png", 0, 2.0)]),
        ("/w_300,h_200/a.png 300w, /w_600,h_400/a.png 600w", [("/w_300,h_200/a.png", 300, 1.0), ("/w_600,h_400/a.png", 600, 1.0)]),
        ("data:image/png;base64,AA== 1x, b.png 2x", [("data:image/png;base64,AA==", 0, 1.0), ("b.png", 0, 2.0)]),
        ("a.png 100w 50h, b.png (odd, thing) 2x, c.png 3q, d.png 0w, e.png -1x", [("a.png", 100, 1.0)]),
        ("a.png\n\t2x", [("a.png", 0, 2.0)]),
        ("a.png 1x 2x, b.png 1e1x", [("b.png", 0, 10.0)]),
    ],
)
def test_srcset_is_parsed_as_the_standard_says(text, expected):
    assert parse_srcset(text) == [Candidate(*values) for values in expected]


# --- html ---


def test_an_image_is_its_largest_candidate(tmp_path):
    touch(tmp_path, "s.png", "m.png", "l.png", "x,1.png")
    assert urls(page(tmp_path, '<img src=s.png srcset="m.png 300w, l.png 900w">')) == ["l.png"]
    assert urls(page(tmp_path, '<img src=s.png srcset="m.png 1x, l.png 2x">')) == ["l.png"]
    assert urls(page(tmp_path, '<img srcset="x,1.png 2x, s.png">')) == ["x,1.png"]
    assert urls(page(tmp_path, '<img src=s.png srcset="data:image/gif;base64,AA,B 1x, m.png 2x">')) == ["m.png"]


def test_a_candidate_that_is_not_in_the_tree_gives_way_to_one_that_is(tmp_path):
    touch(tmp_path, "s.png")
    assert urls(page(tmp_path, '<img src=s.png srcset="https://cdn/l.png 900w, gone.png 600w">')) == ["s.png"]
    lost = page(tmp_path, '<img src=gone.png srcset="https://cdn/l.png 900w">')
    assert (urls(lost), problems(lost)) == (["https://cdn/l.png"], [Reason.REMOTE_URL])


def test_a_picture_element_is_one_image(tmp_path):
    touch(tmp_path, "a.webp", "b.webp", "c.png", "d.png")
    html = """<picture><source srcset="a.webp 400w" type=image/webp><source srcset="b.webp 800w"><img src=c.png></picture>
              <img src=d.png><video><source src=v.mp4 srcset="q.png 1x"></video>"""
    assert urls(page(tmp_path, html)) == ["b.webp", "d.png"]
    assert urls(page(tmp_path, "<picture><source srcset=a.webp><img src=c.png></picture>")) == ["a.webp"]
    assert urls(page(tmp_path, "<picture><picture><img src=c.png></picture></picture>")) == ["c.png"]


def test_lazy_images_are_found_behind_their_placeholders(tmp_path):
    touch(tmp_path, "blank.gif", "real.png", "big.png")
    html = """<img src=blank.gif data-src=real.png><noscript><img src=real.png></noscript>
              <img src="data:image/gif;base64,R0" data-src=big.png>"""
    assert urls(page(tmp_path, html)) == ["real.png", "big.png"]
    assert urls(page(tmp_path, '<img src=blank.gif data-srcset="real.png 1x, big.png 2x">')) == ["big.png"]


def test_links_are_resolved_decoded_and_counted_once(tmp_path):
    touch(tmp_path, "img/a b.png", "img/c.png", "top.png", "sub/d.png", "sub/é.png")
    html = """<img src="../img/a%20b.png#frag"><img src="/top.png?v=3"><img src="d.png"><img src="./d.png?x">
<img src=" ..\\img\\c.png
"><img src="%C3%A9.png"><img src="é.png"><img src=""><img alt="none">"""
    found = page(tmp_path, html, "sub/p.html")
    assert urls(found) == ["img/a b.png", "top.png", "sub/d.png", "img/c.png", "sub/é.png"]
    assert problems(found) == [""] * 5


def test_the_base_element_is_obeyed(tmp_path):
    touch(tmp_path, "img/a.png", "sub/img/a.png")
    assert urls(page(tmp_path, '<base href="img/"><img src=a.png>', "sub/p.html")) == ["sub/img/a.png"]
    assert urls(page(tmp_path, '<base href="/img/x.html"><img src=a.png>', "sub/p.html")) == ["img/a.png"]
    assert urls(page(tmp_path, '<base href="../"><img src=img/a.png>', "sub/p.html")) == ["img/a.png"]
    assert urls(page(tmp_path, '<base target=_top><base href="/img/"><base href="/"><img src=a.png>', "sub/p.html")) == [
        "img/a.png"
    ]
    assert problems(page(tmp_path, '<base href="https://host/"><img src=img/a.png>')) == [Reason.REMOTE_URL]
    assert problems(page(tmp_path, '<base href="../../"><img src=a.png>', "sub/p.html")) == [Reason.OUTSIDE_ROOT]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://host/a.png", Reason.REMOTE_URL),
        ("//host/a.png", Reason.REMOTE_URL),
        ("\\\\host\\a.png", Reason.REMOTE_URL),
        ("data:image/png;base64,AAAA", Reason.DATA_URL),
        ("../secret.png", Reason.OUTSIDE_ROOT),
        ("/../secret.png", Reason.OUTSIDE_ROOT),
        ("x/../../secret.png", Reason.OUTSIDE_ROOT),
        ("%2e%2e/secret.png", Reason.OUTSIDE_ROOT),
        ("..%2Fsecret.png", Reason.OUTSIDE_ROOT),
        ("..\\secret.png", Reason.OUTSIDE_ROOT),
        ("leak.png", Reason.OUTSIDE_ROOT),
        ("door/secret.png", Reason.OUTSIDE_ROOT),
        ("file:///etc/passwd", Reason.OUTSIDE_ROOT),
        ("gone.png", Reason.MISSING_FILE),
        ("%2Fetc/passwd", Reason.MISSING_FILE),
        ("./", Reason.MISSING_FILE),
        ("javascript:alert(1)", Reason.BAD_URL),
        ("#only", Reason.BAD_URL),
        ("http://[bad/a.png", Reason.BAD_URL),
        ("a%00.png", Reason.BAD_URL),
        ("a" * 5000 + ".png", Reason.BAD_URL),
    ],
)
def test_a_reference_that_leads_to_no_file_of_the_tree_is_kept_with_its_problem(tmp_path, url, problem):
    touch(tmp_path, "secret.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "leak.png").symlink_to(tmp_path / "secret.png")
    (root / "door").symlink_to(tmp_path)
    (image,) = page(root, f'<img src="{url}">').images
    assert (image.path, image.problem) == ("", problem)
    assert image.detail


@pytest.mark.parametrize(
    "data",
    [
        '<img src="é.png">'.encode(),
        b"\xef\xbb\xbf" + '<img src="é.png">'.encode(),
        '\ufeff<img src="é.png">'.encode("utf-16-le"),
        '<meta charset="iso-8859-1"><img src="é.png">'.encode("latin-1"),
        '<meta http-equiv="Content-Type" content="text/html; charset=windows-1252"><img src="é.png">'.encode("cp1252"),
        '<?xml version="1.0" encoding="ISO-8859-1"?><html><img src="é.png"/></html>'.encode("latin-1"),
        '<?xml version="1.0" encoding="base64"?><html><img src="é.png"/></html>'.encode(),
        '<img src="é.png">'.encode("latin-1"),
    ],
    ids=["utf-8", "utf-8 BOM", "utf-16 BOM", "meta", "http-equiv", "xml", "nonsense", "undeclared"],
)
def test_the_encoding_of_a_page_is_found(tmp_path, data):
    touch(tmp_path, "é.png")
    assert problems(page(tmp_path, data)) == [""]


def test_every_html_file_is_a_page_in_order_even_without_pictures(tmp_path):
    touch(tmp_path, "b.htm", "a/c.XHTML", "a.html", "d.txt", "p.png")
    page(tmp_path, "<img src=p.png>", "a.html")
    pages = html_pages(tmp_path)
    assert [p.page_url for p in pages] == html_files(tmp_path) == ["a.html", "a/c.XHTML", "b.htm"]
    assert [urls(p) for p in pages] == [["p.png"], [], []]


def test_a_page_outside_the_root_or_too_large_is_a_page_with_a_problem(tmp_path):
    touch(tmp_path, "secret.html", "root/a.html")
    (tmp_path / "root" / "leak.html").symlink_to(tmp_path / "secret.html")
    with open(tmp_path / "root" / "z.html", "wb") as stream:
        stream.truncate(MAX_PAGE_BYTES + 1)
    assert [p.problem for p in html_pages(tmp_path / "root")] == ["", Reason.PAGE_UNREADABLE, Reason.PAGE_UNREADABLE]


def test_html_that_is_no_html_shows_no_pictures(tmp_path):
    assert page(tmp_path, bytes(range(256)) * 4).images == ()
    assert page(tmp_path, b"").images == ()
