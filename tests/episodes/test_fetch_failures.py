"""The fetcher before a server that fails: what is tried again, what is final, and that garbage is never a crash."""

import pytest

from semantica.episodes.quarantine import Reason
from tests.episodes.fetch_server import at, fetcher, one, serving


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again_with_longer_and_longer_pauses(server, status):
    def flaky(handler):
        return (status, {}, b"later") if handler.server.hits["/a"] < 3 else (200, {}, b"x")

    server.pages["/a"] = flaky
    assert one(server, "/a", backoff_s=0.1, respect_robots=False).data == b"x"
    first, second, third = server.times
    assert second - first >= 0.1
    assert third - second >= 0.2


def test_what_does_not_pass_is_a_refusal_after_the_last_try(server):
    server.pages["/a"] = (503, {}, b"")
    result = one(server, "/a", max_retries=2)
    assert (result.problem, result.status, result.detail) == (Reason.FETCH_STATUS, 503, "status 503")
    assert server.hits["/a"] == 3


@pytest.mark.parametrize("status", [204, 206, 304, 401, 403, 404, 410, 451, 501])
def test_other_answers_are_final(server, status):
    server.pages["/a"] = (status, {"Content-Length": 0}, b"")
    result = one(server, "/a")
    assert (result.problem, result.status, result.data) == (Reason.FETCH_STATUS, status, None)
    assert server.hits["/a"] == 1


def test_retry_after_is_heeded_and_too_much_of_it_ends_the_matter(server):
    server.pages["/a"] = lambda handler: (429, {"Retry-After": "1"}, b"") if handler.server.hits["/a"] == 1 else (200, {}, b"x")
    assert one(server, "/a", respect_robots=False).data == b"x"
    assert server.times[1] - server.times[0] >= 1.0
    server.pages["/b"] = (503, {"Retry-After": "Fri, 31 Dec 2999 23:59:59 GMT"}, b"")
    patient = fetcher(server)
    assert [r.problem for r in patient.fetch_all([at(server, "/b")])] == [Reason.FETCH_STATUS]
    assert [r.problem for r in patient.fetch_all([at(server, "/a")])] == [Reason.FETCH_FAILED]  # the host is left alone
    assert server.hits["/b"] == 1
    assert server.hits["/a"] == 2


def test_a_host_that_keeps_failing_is_left_alone_and_no_other_is(server):
    server.pages |= {"/a": (500, {}, b""), "/b": (200, {}, b"x")}
    bad = [at(server, f"/a?bad{i}", "bad.example") for i in range(50)]
    good = [at(server, f"/{'a' if i % 4 else 'b'}?{i}", "good.example") for i in range(20)]  # fails, but not four times in a row
    settings = {"max_host_failures": 4, "max_retries": 0, "per_host_concurrency": 1, "respect_robots": False}
    results = {r.url: r for r in fetcher(server, **settings).fetch_all(bad + good)}
    assert sum(num for path, num in server.hits.items() if "bad" in path) == 4
    assert {results[url].problem for url in bad} == {Reason.FETCH_STATUS, Reason.FETCH_FAILED}
    assert sum(results[url].data == b"x" for url in good) == 5


def test_a_connection_that_breaks_is_tried_again(server):
    def breaks(handler):
        if handler.server.hits["/a"] == 1:
            handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            return None
        return 200, {}, b"whole body"

    server.pages["/a"] = breaks
    assert one(server, "/a").data == b"whole body"
    assert server.hits["/a"] == 2
    server.hits.clear()
    result = one(server, "/a", max_retries=0)
    assert (result.problem, result.data) == (Reason.FETCH_FAILED, None)


def test_a_server_that_is_not_there_is_named_as_such():
    with serving() as server:
        pass  # the port is free again
    result = one(server, "/a", max_retries=1)
    assert result.problem == Reason.FETCH_FAILED  # and not "robots", though robots.txt met it first
    assert "ConnectorError" in result.detail


def test_a_failed_handshake_is_final(server):
    url = at(server, "/a").replace("http:", "https:")
    (result,) = fetcher(server, max_retries=3, backoff_s=30.0).fetch_all([url])
    assert result.problem == Reason.FETCH_FAILED
    assert "TLS" in result.detail
    assert not server.hits


GARBAGE = [
    b"",
    b"\x00\xff" * 500,
    b"SSH-2.0-OpenSSH_9.9\r\n",
    b"HTTP/1.1 999999 X\r\n\r\n",
    b"HTTP/1.1 abc\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nx",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nnot gzip",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: \xff\r\n\r\nx",
    b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe://\x80\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://a b.example:x/\r\n\r\n",
    b"HTTP/1.1 503 X\r\nRetry-After: Mon, 99 Foo 2020 99:99:99 GMT\r\n\r\n",
    b"HTTP/1.1 503 X\r\nRetry-After: " + b"9" * 400 + b"\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
]


def test_garbage_from_a_server_is_a_reason_and_never_a_crash(server):
    for i, garbage in enumerate(GARBAGE):
        server.pages[f"/{i}"] = lambda handler, garbage=garbage: handler.wfile.write(garbage) and None
    urls = [at(server, f"/{i}", f"h{i}.example") for i in range(len(GARBAGE))]
    results = {r.url: r for r in fetcher(server, max_retries=0, read_timeout_s=1.0).fetch_all(urls)}
    assert results.keys() == set(urls)
    assert [GARBAGE[i] for i, url in enumerate(urls) if not results[url].problem] == []
    assert all(Reason(result.problem) and result.detail and result.data is None for result in results.values())
