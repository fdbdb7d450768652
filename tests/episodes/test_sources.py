"""What pages a tree of files gives, and that nothing in a tree leads out of it."""

import os
import pickle
from dataclasses import replace

import pytest

from semantica.episodes.pages import ReadConfig, Source
from semantica.episodes.quarantine import Reason
from semantica.episodes.sources.folder import FolderSource
from semantica.episodes.sources.html import (
    MAX_PAGE_BYTES,
    HtmlSource,
    base_href,
    parse,
    picture_candidates,
    read_page,
    robots_directives,
)
from semantica.episodes.sources.srcset import Candidate, parse_srcset
from semantica.episodes.sources.tree import RemoteTree, open_tree
from semantica.errors import DataError
from semantica.storage import location

DEFAULT = ReadConfig()


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def page(root, html, name="index.html"):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(html if isinstance(html, bytes) else html.encode())
    return read_page(open_tree(root), name)


def pages_of(source, root, settings=DEFAULT):
    """All pages, part after part."""
    return [page for part in source.parts(root, settings) for page in source.pages(root, part, settings)]


def folder_pages(root):
    return pages_of(FolderSource(), root)


def html_pages(root):
    return pages_of(HtmlSource(), root)


def urls(page):
    return [image.url for image in page.images]


def problems(page):
    return [image.problem for image in page.images]


@pytest.mark.parametrize("source", [FolderSource(), HtmlSource()])
def test_a_missing_or_empty_root_is_an_error_that_names_it(source, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        source.parts(tmp_path / "nowhere", DEFAULT)
    touch(tmp_path, "a/readme.txt")
    with pytest.raises(DataError, match=f"no p.* under {tmp_path}"):
        source.parts(tmp_path, DEFAULT)


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
        '<?xml version="1.0" encoding="punycode"?><html><img src="é.png"/></html>'.encode(),
        '<meta charset=punycode><img src="é.png">'.encode(),
        '<img src="é.png">'.encode("latin-1"),
    ],
    ids=[
        "utf-8",
        "utf-8 BOM",
        "utf-16 BOM",
        "meta",
        "http-equiv",
        "xml",
        "nonsense",
        "xml punycode",
        "meta punycode",
        "undeclared",
    ],
)
def test_the_encoding_of_a_page_is_found(tmp_path, data):
    touch(tmp_path, "é.png")
    assert problems(page(tmp_path, data)) == [""]


def test_every_html_file_is_a_page_in_order_even_without_pictures(tmp_path):
    touch(tmp_path, "b.htm", "a/c.XHTML", "a.html", "d.txt", "p.png")
    page(tmp_path, "<img src=p.png>", "a.html")
    pages = html_pages(tmp_path)
    assert [p.page_url for p in pages] == ["a.html", "a/c.XHTML", "b.htm"]
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


def test_a_remote_reference_keeps_its_absolute_url(tmp_path):
    html = '<img src="//host/a.png"><img src="http://Host/b.png?v=1#part"><img src="\\\\host\\c.png"><img src="https://host/a.png">'
    assert urls(page(tmp_path, html)) == ["https://host/a.png", "http://Host/b.png?v=1", "https://host/c.png"]
    html = '<base href="http://host/dir/x.html"><img src="a.png"><img src="/b.png"><img src="../../c.png"><img src="//cdn/d.png">'
    assert urls(page(tmp_path, html)) == ["http://host/dir/a.png", "http://host/b.png", "http://host/c.png", "http://cdn/d.png"]
    long = "https://host/" + "x" * 3000
    assert urls(page(tmp_path, f'<img src="{long}">')) == [long]
    assert problems(page(tmp_path, '<img src="https:///a.png">')) == [Reason.BAD_URL]


def test_a_mirror_of_hosts_holds_what_absolute_links_name(tmp_path):
    touch(tmp_path, "cdn.example/i/a b.png", "cdn.example/i/c.png?w=9&u=x%2Fy", "cdn.example:81/d.png", "secret.png")
    html = """<img src="http://cdn.example/i/a%20b.png"><img src="https://CDN.example/i/c.png?w=9&amp;u=x%2Fy">
              <img src="//cdn.example:81/d.png?v=3"><img src="http://cdn.example/gone.png"><img src="http://../secret.png">
              <img src="http://cdn.example/../../secret.png">"""
    found = page(tmp_path, html, "site.example/index.html")
    assert urls(found)[:3] == ["cdn.example/i/a b.png", "cdn.example/i/c.png?w=9&u=x%2Fy", "cdn.example:81/d.png"]
    assert problems(found) == ["", "", "", *[Reason.REMOTE_URL] * 3]
    based = page(tmp_path, '<base href="http://cdn.example/i/"><img src="a b.png">', "site.example/index.html")
    assert urls(based) == ["cdn.example/i/a b.png"]
    own = '<img src="/i/c.png?w=9&u=x%2Fy"><img src="/i/gone.png"><img src="/secret.png"><img src="/../../secret.png">'
    own = page(tmp_path, own, "cdn.example/deep/index.html")
    assert urls(own)[::2] == ["cdn.example/i/c.png?w=9&u=x%2Fy", "secret.png"]
    assert problems(own)[1::2] == [Reason.MISSING_FILE, Reason.OUTSIDE_ROOT]
    assert problems(page(tmp_path, '<img src="/i/c.png">', "plain/index.html")) == [Reason.MISSING_FILE]


def test_a_query_names_the_file_that_wget_saved_or_none(tmp_path):
    touch(tmp_path, "a.png", "a.png?v=2")
    assert urls(page(tmp_path, '<img src="a.png?v=2"><img src="a.png?v=1">')) == ["a.png?v=2", "a.png"]


def test_what_a_page_asks_of_robots_is_kept(tmp_path):
    html = """<meta name="Robots" content="NoAI, noimageai,,"><meta name=googlebot content="noindex, noai">
              <meta name=description content="nofollow"><meta name=robots><img src=x.png>"""
    assert page(tmp_path, html).opt_out == ("noai", "noimageai", "noindex")
    assert page(tmp_path, "<img src=x.png>").opt_out == ()
    assert robots_directives(parse(b"<META NAME=ROBOTS CONTENT=none>")) == ("none",)


def test_what_a_page_shows_can_be_had_without_a_tree():
    tree = parse(
        b'<base target=_top><base href="/x/"><base href="/y/"><img src=a.png srcset="b.png 2x"><img alt=none><img src=c.png>'
    )
    assert [[c.url for c in candidates] for candidates in picture_candidates(tree)] == [["b.png", "a.png"], ["c.png"]]
    assert base_href(tree) == "/x/"
    assert base_href(parse(b"<p>")) is None


# --- parts ---


@pytest.mark.parametrize("source", [FolderSource(), HtmlSource()])
def test_parts_are_plain_data_and_any_cut_gives_the_same_pages(source, tmp_path):
    for i in range(5):
        touch(tmp_path, f"d{i}/p.png")
        page(tmp_path, f'<img src="p.png"><img src="/d{i - 1}/p.png">', f"d{i}/i.html")
    whole = pages_of(source, tmp_path)
    assert len(whole) == 5
    settings = ReadConfig(pages_per_part=2)
    parts = source.parts(tmp_path, settings)
    assert isinstance(source, Source)
    assert [len(part.paths) for part in parts] == [2, 2, 1]
    assert parts == source.parts(tmp_path, settings) == pickle.loads(pickle.dumps(parts))  # noqa: S301 - made here
    assert pages_of(source, tmp_path, settings) == whole
    assert list(source.pages(tmp_path, parts[2], settings)) == whole[4:]  # a part needs no other


def test_a_picture_of_another_size_changes_the_listing(tmp_path):
    page(tmp_path, "<img src=b/p.png>", "a/i.html")
    touch(tmp_path, "a/q.png", "b/p.png")
    settings = ReadConfig(pages_per_part=1)
    folders, pages = FolderSource().parts(tmp_path, settings), HtmlSource().parts(tmp_path, settings)
    (tmp_path / "b" / "p.png").write_bytes(b"longer")
    after = FolderSource().parts(tmp_path, settings)
    assert (after[0], after[1].paths) == (folders[0], folders[1].paths)
    assert after[1].fingerprint != folders[1].fingerprint
    assert HtmlSource().parts(tmp_path, settings)[0].fingerprint != pages[0].fingerprint


# --- buckets ---


@pytest.fixture
def bucket(request):
    root = location(f"memory://crawl-{request.node.name}/x")
    yield root
    root.fs.rm(root.path, recursive=True)


def test_a_tree_in_a_bucket_gives_the_pages_of_the_same_tree_on_disk(tmp_path, bucket):
    names = ["b/2.png", "b/10.PNG", "a/deep/x y.jpg", "a-b/z.gif", "z.webp", "none/readme.md", "host.example/i.png?q=1"]
    html = '<img src=2.png><img src="/a/deep/x%20y.jpg"><img src=gone.png><img src=nowhere/at/all.png><img src="../../up.png">'
    html += '<img src="//host.example/i.png?q=1"><img src="https://far/i.png"><base href=./>'
    for name, data in [*((name, b"x") for name in names), ("b/i.html", html.encode()), ("c.htm", b"<img src=b/2.png>")]:
        (bucket / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / name).write_bytes(data)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for source in (FolderSource(), HtmlSource()):
        here, there = pages_of(source, tmp_path), pages_of(source, bucket)
        assert [p.page_url for p in here] == [p.page_url for p in there]
        assert [(i.url, i.problem) for p in here for i in p.images] == [(i.url, i.problem) for p in there for i in p.images]
        assert here == [  # but for where the bytes are, and each is where it says
            replace(p, images=tuple(replace(i, path=i.path and str(tmp_path / i.url)) for i in p.images)) for p in there
        ]
        assert all(location(i.path).read_bytes() == b"x" for p in there for i in p.images if i.path)
        assert source.parts(tmp_path, DEFAULT) == source.parts(bucket, DEFAULT)


def test_an_empty_bucket_is_an_error_that_names_it():
    for source in (FolderSource(), HtmlSource()):
        with pytest.raises(DataError, match=r"memory://crawl-nothing/x; expected the root of a crawl"):
            source.parts(location("memory://crawl-nothing/x"), DEFAULT)


def test_a_page_in_a_bucket_costs_requests_by_folders_not_by_pictures(bucket, monkeypatch):
    (bucket / "a" / "b").mkdir(parents=True)
    for i in range(20):
        (bucket / "a" / "b" / f"{i}.png").write_bytes(b"x")
    listed, ls = [], bucket.fs.ls
    monkeypatch.setattr(bucket.fs, "ls", lambda path, **options: listed.append(path) or ls(path, **options))
    tree = RemoteTree(bucket)
    assert sum(bool(tree.image_ref(f"a/b/{i}.png").path) for i in range(40)) == 20
    assert all(tree.image_ref(f"no/{i}/{i}.png").problem == Reason.MISSING_FILE for i in range(40))
    assert listed == [bucket.path, f"{bucket.path}/a", f"{bucket.path}/a/b"]
