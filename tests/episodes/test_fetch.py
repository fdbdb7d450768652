"""The fetcher against a real server on this machine: what arrives, politeness to hosts, and how it ends."""

import threading
import time

import pytest

from semantica.config import from_dict, to_dict
from semantica.episodes.fetch import FetchConfig
from semantica.episodes.fetch.fetcher import share
from semantica.errors import ConfigError
from tests.episodes.fetch_server import at, fetcher, one


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


def test_two_hosts_that_redirect_to_each_other_do_not_wait_for_each_other(server):
    server.pages["/a"] = lambda handler: (302, {"Location": at(handler.server, "/b", "two.example")}, b"")
    server.pages["/c"] = lambda handler: (302, {"Location": at(handler.server, "/b", "one.example")}, b"")
    server.pages["/b"] = (200, {}, b"x")
    urls = [at(server, f"/{path}?{i}", host) for i in range(10) for path, host in (("a", "one.example"), ("c", "two.example"))]
    results = list(fetcher(server, concurrency=2, per_host_concurrency=1).fetch_all(urls))
    assert [r.data for r in results] == [b"x"] * 20


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
