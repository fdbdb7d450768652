"""The bounds of one answer: its bytes as sent and unpacked, its time and its redirects."""

import gzip
import threading
import time
import zlib

import pytest

from semantica.episodes.quarantine import Reason
from tests.episodes.fetch_server import at, fetcher, one


def test_too_many_bytes_are_refused_by_their_announcement(server):
    go_on = threading.Event()

    def large(handler):
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 99999999\r\n\r\n")
        go_on.wait(20)  # no byte of the body comes, so whoever waits for one meets the total time

    server.pages["/a"] = large
    assert one(server, "/a", max_bytes=1000).problem == Reason.TOO_MANY_BYTES
    go_on.set()


def test_too_many_bytes_are_refused_when_nothing_announced_them(server):
    num_written = 0

    def endless(handler):
        nonlocal num_written
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        while True:
            handler.wfile.write(bytes(10_000))
            num_written += 10_000

    server.pages["/a"] = endless
    assert one(server, "/a", max_bytes=100_000).problem == Reason.TOO_MANY_BYTES
    assert num_written < 20_000_000  # what the sockets hold, not what the server has


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw"])
def test_a_bomb_is_stopped_and_an_honest_body_unpacked(server, coding):
    def pack(data):
        if coding == "gzip":
            return gzip.compress(data)
        return zlib.compress(data) if coding == "deflate" else zlib.compress(data, 9, -15)

    headers = {"Content-Encoding": "gzip" if coding == "gzip" else "deflate"}
    server.pages["/bomb"] = (200, headers, pack(bytes(50_000_000)))
    server.pages["/good"] = (200, headers, pack(bytes(100_000)))
    server.pages["/over"] = (200, headers, pack(bytes(100_001)))
    server.pages["/half"] = (200, headers, pack(bytes(100_000))[:-20])
    urls = [at(server, path) for path in ("/bomb", "/good", "/over", "/half")]
    results = {r.url: r for r in fetcher(server, max_body_bytes=100_000, max_retries=0).fetch_all(urls)}
    assert [results[url].problem for url in urls] == [Reason.TOO_MANY_BYTES, "", Reason.TOO_MANY_BYTES, Reason.FETCH_FAILED]
    assert results[urls[1]].data == bytes(100_000)


def test_a_coding_nobody_asked_for_is_refused(server):
    server.pages["/a"] = (200, {"Content-Encoding": "gzip, gzip"}, gzip.compress(gzip.compress(b"x")))
    server.pages["/b"] = (200, {"Content-Encoding": "br"}, b"x")
    assert {one(server, path).problem for path in ("/a", "/b")} == {Reason.FETCH_FAILED}


def test_a_server_that_drips_is_left_after_the_total_time(server):
    def drip(handler):
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    server.pages["/a"] = drip
    assert one(server, "/a", total_timeout_s=0.5, max_retries=0).problem == Reason.FETCH_TIMEOUT


def test_a_server_that_falls_silent_is_left_after_the_read_timeout(server):
    silent = threading.Event()
    server.pages["/a"] = lambda handler: silent.wait(5) and None
    assert one(server, "/a", read_timeout_s=0.3, max_retries=0).problem == Reason.FETCH_TIMEOUT
    silent.set()


def test_redirects_are_followed_to_their_bound(server):
    for i in range(4):
        server.pages[f"/{i}"] = (302, {"Location": f"/{i + 1}"}, b"")
    server.pages["/4"] = (200, {}, b"x")
    result = one(server, "/0", max_redirects=4)
    assert (result.data, result.final_url) == (b"x", at(server, "/4"))
    assert one(server, "/0", max_redirects=3).problem == Reason.TOO_MANY_REDIRECTS
    server.pages["/loop"] = (301, {"Location": "/loop"}, b"")
    server.hits.clear()
    assert one(server, "/loop", max_redirects=5).problem == Reason.TOO_MANY_REDIRECTS
    assert server.hits["/loop"] == 6
