"""What pictures an HTML page shows: the best candidate of each, its link resolved, nothing from outside the tree."""

import pytest

from semantica.episodes.quarantine import Reason
from semantica.episodes.sources.html import MAX_PAGE_BYTES, HtmlSource, base_href, parse, picture_candidates, robots_directives
from tests.episodes.trees import page, pages_of, problems, touch, urls


def html_pages(root):
    return pages_of(HtmlSource(), root)


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
