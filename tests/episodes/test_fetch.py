"""The fetcher against a real server on this machine: bounds, politeness, retries, limits, robots."""

import gzip
import threading
import time
import zlib
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yarl
from hypothesis import given
from hypothesis import strategies as st

from semantica.config import from_dict, to_dict
from semantica.episodes.fetch import FetchConfig, Fetcher, share
from semantica.episodes.fetch_http import FetchFailed, robots_directives
from semantica.episodes.fetch_robots import rules_of
from semantica.episodes.quarantine import Reason
from semantica.errors import ConfigError


class Server(ThreadingHTTPServer):
    """Answers as the test says, and keeps count. `pages`: path to (status, headers, body), or a function of the handler."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.hits, self.times, self.headers = {}, Counter(), [], []
        self.now, self.most, self.lock = 0, 0, threading.Lock()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        with server.lock:
            server.hits[self.path] += 1
            server.times.append(time.monotonic())
            server.headers.append(self.headers)
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            page = server.pages.get(self.path.partition("?")[0], (404, {}, b"nothing here"))
            if callable(page):
                page = page(self)
            if page is not None:
                self.answer(*page)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the fetcher hung up, as it should
        finally:
            with server.lock:
                server.now -= 1

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """The server, in threads of its own."""
    with serving() as running:
        yield running


@contextmanager
def serving():
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def fetcher(server, **settings):
    """A fetcher to whom every name is at 127.0.0.1 and the server's port is the one place it may go to."""
    port = server.server_port
    fast = {"per_host_per_second": 1000.0, "backoff_s": 0.01, "total_timeout_s": 10.0, "contact": "a@b.example", "ports": (port,)}

    async def resolve(host, port):
        return ["127.0.0.1"]

    config = FetchConfig(**{**fast, **settings})
    return Fetcher(config, resolve=resolve, allowed=lambda address, where: (str(address), where) == ("127.0.0.1", port))


def at(server, path, host="pictures.example"):
    return f"http://{host}:{server.server_port}{path}"


def one(server, path, **settings):
    """What becomes of one URL."""
    (result,) = fetcher(server, **settings).fetch_all([at(server, path)])
    return result


def test_bytes_arrive_whatever_their_type(server):
    server.pages["/a.png"] = (200, {"Content-Type": "text/html"}, b"\x89PNG and so on")
    result = one(server, "/a.png", contact="https://lab.example/bot")
    assert (result.data, result.status, result.problem, result.final_url) == (b"\x89PNG and so on", 200, "", at(server, "/a.png"))
    assert {headers["User-Agent"] for headers in server.headers} == {"semantica (+https://lab.example/bot)"}


def test_requests_at_once_stay_within_both_bounds_and_use_them(server):
    def slow(_):
        time.sleep(0.1)
        return 200, {}, b"x"

    server.pages["/a"] = slow
    urls = [at(server, f"/a?{i}", f"host{i % 8}.example") for i in range(32)]
    assert sum(r.data == b"x" for r in fetcher(server, concurrency=6, per_host_concurrency=2).fetch_all(urls)) == 32
    assert 4 <= server.most <= 6
    server.most = 0
    urls = [at(server, f"/a?{i}") for i in range(8)]
    assert sum(r.data == b"x" for r in fetcher(server, concurrency=6, per_host_concurrency=2).fetch_all(urls)) == 8
    assert server.most == 2


def test_bodies_nobody_takes_stop_the_fetcher(server):
    server.pages["/a"] = (200, {}, b"x")
    urls = [at(server, f"/a?{i}", f"host{i}.example") for i in range(40)]
    results = fetcher(server, concurrency=4, respect_robots=False).fetch_all(urls)
    next(results)
    time.sleep(0.5)
    assert server.hits.total() <= 5  # one that was taken, and four bodies
    assert sum(1 for _ in results) == 39


def test_the_rate_of_a_host_holds_across_calls_and_counts_robots_txt(server):
    server.pages["/a"] = (200, {}, b"x")
    polite = fetcher(server, per_host_per_second=10.0, per_host_concurrency=8)
    for call in range(2):
        assert sum(r.data == b"x" for r in polite.fetch_all([at(server, f"/a?{call}{i}") for i in range(4)])) == 4
    assert server.hits["/robots.txt"] == 1
    assert len(server.times) == 9
    assert server.times[-1] - server.times[0] >= 0.5  # of 0.8 s; the server may note the first one late


def test_crawl_delay_is_heeded_up_to_the_cap(server):
    server.pages["/a"] = (200, {}, b"x")
    server.pages["/robots.txt"] = (200, {}, b"User-agent: *\nCrawl-delay: 3600\n")
    list(fetcher(server, max_crawl_delay_s=0.2).fetch_all([at(server, f"/a?{i}") for i in range(3)]))
    assert server.times[-1] - server.times[0] >= 0.4  # of 0.6 s


def test_a_slow_host_holds_no_other_up(server):
    server.pages["/a"] = (200, {}, b"x")
    urls = [at(server, f"/a?{i}", "slow.example") for i in range(3)] + [at(server, "/a", f"h{i}.example") for i in range(10)]
    order = [r.url for r in fetcher(server, per_host_per_second=1.5, concurrency=2, respect_robots=False).fetch_all(urls)]
    assert set(order) == set(urls)
    assert order[-1] == urls[2]  # which had to wait for 1.3 s; the ten others overtook it


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


@given(
    st.binary(max_size=200), st.sampled_from(["", "user-agent: *\n", "user-agent: *\ndisallow: ", "user-agent: *\ncrawl-delay: "])
)
def test_any_bytes_are_a_robots_txt(body, start):
    rules = rules_of(start.encode() + body)
    with suppress(FetchFailed):
        rules.check(yarl.URL("http://pictures.example/a%20b?c=d"), "semantica")
    assert isinstance(rules.crawl_delay_s("semantica"), float)


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


def test_two_hosts_that_redirect_to_each_other_do_not_wait_for_each_other(server):
    server.pages["/a"] = lambda handler: (302, {"Location": at(handler.server, "/b", "two.example")}, b"")
    server.pages["/c"] = lambda handler: (302, {"Location": at(handler.server, "/b", "one.example")}, b"")
    server.pages["/b"] = (200, {}, b"x")
    urls = [at(server, f"/{path}?{i}", host) for i in range(10) for path, host in (("a", "one.example"), ("c", "two.example"))]
    results = list(fetcher(server, concurrency=2, per_host_concurrency=1).fetch_all(urls))
    assert [r.data for r in results] == [b"x"] * 20


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


def test_leaving_early_closes_every_socket_and_thread(server):
    server.pages["/a"] = lambda handler: time.sleep(0.2) or (200, {}, b"x")
    results = fetcher(server).fetch_all(at(server, f"/a?{i}", f"h{i}.example") for i in range(200))
    next(results)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "semantica-fetch"]
    deadline = time.monotonic() + 5
    while server.now and time.monotonic() < deadline:
        time.sleep(0.02)
    hits = server.hits.total()
    time.sleep(0.3)
    assert server.hits.total() == hits < 400


def test_an_error_of_the_callers_urls_reaches_the_caller(server):
    def urls():
        yield at(server, "/a")
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        list(fetcher(server).fetch_all(urls()))


def test_all_urls_of_a_host_have_the_same_share():
    urls = [f"http://h{i}.example{dot}/{j}" for i in range(50) for j, dot in enumerate(("", ".", ":80"))]
    shares = [share(url, 4) for url in urls]
    assert shares[::3] == shares[1::3] == shares[2::3]
    assert set(shares) == {0, 1, 2, 3}


def test_settings_survive_the_door_and_bad_ones_are_refused():
    config = FetchConfig(contact="mail@lab.example", ports=(80, 8080))
    assert from_dict(FetchConfig, to_dict(config)) == config
    bad = {"product": "a b", "contact": "x\r\nEvil: 1", "concurrency": 0, "ports": (), "max_redirects": 21, "backoff_s": -1.0}
    for name, value in {**bad, "per_host_per_second": 0.0}.items():
        with pytest.raises(ConfigError, match=name):
            FetchConfig(**{name: value})
