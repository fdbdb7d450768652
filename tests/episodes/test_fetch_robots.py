"""What a site tells robots, in robots.txt and in X-Robots-Tag, and that the fetcher heeds it."""

from contextlib import suppress

import pytest
import yarl
from hypothesis import given
from hypothesis import strategies as st

from semantica.episodes.fetch.http import FetchFailed, robots_directives
from semantica.episodes.fetch.politeness import rules_of
from semantica.episodes.quarantine import Reason
from tests.episodes.fetch_server import at, fetcher, one


@given(
    st.binary(max_size=200), st.sampled_from(["", "user-agent: *\n", "user-agent: *\ndisallow: ", "user-agent: *\ncrawl-delay: "])
)
def test_any_bytes_are_a_robots_txt(body, start):
    rules = rules_of(start.encode() + body)
    with suppress(FetchFailed):
        rules.check(yarl.URL("http://pictures.example/a%20b?c=d"), "semantica")
    assert isinstance(rules.crawl_delay_s("semantica"), float)


def test_robots_txt_is_obeyed_on_every_hop_and_asked_for_once(server):
    rules = b"User-agent: *\nDisallow: /\n\nUser-agent: Semantica\nDisallow: /private\nAllow: /private/ok\n"
    server.pages |= {"/robots.txt": (200, {"X-Robots-Tag": "noindex"}, rules), "/private/ok": (200, {}, b"x")}
    server.pages["/hop"] = (302, {"Location": "/private/a"}, b"")
    paths = ["/private/a", "/private/ok", "/hop"]
    results = {r.url: r for r in fetcher(server).fetch_all([at(server, path) for path in paths])}
    assert [results[at(server, path)].problem for path in paths] == [Reason.ROBOTS, "", Reason.ROBOTS]
    assert server.hits == {"/robots.txt": 1, "/private/ok": 1, "/hop": 1}
    assert one(server, "/private/ok", product="another").problem == Reason.ROBOTS
    server.pages["/private/a"] = (200, {}, b"y")
    assert one(server, "/private/a", respect_robots=False).data == b"y"


@pytest.mark.parametrize(("status", "problem"), [(404, ""), (403, ""), (500, Reason.ROBOTS), (429, Reason.ROBOTS)])
def test_without_robots_txt_all_is_allowed_and_with_a_broken_server_nothing(server, status, problem):
    server.pages |= {"/robots.txt": (status, {}, b"User-agent: *\nDisallow: /"), "/a": (200, {}, b"x")}
    assert one(server, "/a").problem == problem
    assert server.hits["/a"] == (0 if problem else 1)


def test_a_robots_txt_without_an_end_is_read_as_far_as_it_must_be(server):
    def endless(handler):
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nUser-agent: *\nDisallow: /private\n")
        while True:
            handler.wfile.write(b"# and so on\n" * 1000)

    server.pages |= {"/robots.txt": endless, "/a": (200, {}, b"x")}
    assert one(server, "/a", max_bytes=1000).data == b"x"
    assert one(server, "/private", max_bytes=1000).problem == Reason.ROBOTS


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("noai", Reason.OPTED_OUT),
        ("NoImageAI, nofollow", Reason.OPTED_OUT),
        ("nofollow, none", Reason.OPTED_OUT),
        ("semantica: noindex", Reason.OPTED_OUT),
        ("otherbot: noindex", ""),
        ("nofollow, max-image-preview: large", ""),
    ],
)
def test_x_robots_tag_is_heeded_before_the_body_is_read(server, header, problem):
    server.pages["/a"] = (200, {"X-Robots-Tag": header}, b"x")
    assert one(server, "/a").problem == problem
    assert one(server, "/a", respect_opt_out=False).data == b"x"


def test_directives_belong_to_the_robot_that_is_named_before_them():
    date = "unavailable_after: 25 Jun 2030 15:00:00 PST"
    headers = ["otherbot: noindex, nofollow", f"{date}, noai", "other: none, semantica: noimageai"]
    assert robots_directives(headers, "Semantica") == {date.lower(), "noai", "noimageai"}
