"""What was fetched, kept in files: resumed after a kill, looked up, put into pages."""

import subprocess
import sys
import threading
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow.parquet as pq
import pytest

from semantica.data.location import location
from semantica.episodes.fetch import FetchConfig
from semantica.episodes.fetch import store as fetch_store
from semantica.episodes.fetch.fetcher import Fetcher
from semantica.episodes.fetch.store import FetchedPictures, fetch_into, fetchable_urls, resolve
from semantica.episodes.pages import ImageRef, Page
from semantica.episodes.quarantine import Reason


@contextmanager
def serving():
    """A server that gives every path but /missing... its own body; `hits` counts, `hold` is called before an answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.hits[self.path] += 1
            server.hits_of[self.headers["User-Agent"].partition(" ")[0]][self.path] += 1
            server.hold(server.hits.total())
            body = b"" if self.path == "/robots.txt" else f"body of {self.path}".encode() * 50
            self.send_response(404 if self.path.startswith("/missing") else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hits, server.hold, server.daemon_threads = Counter(), lambda total: None, True
    server.hits_of = defaultdict(Counter)  # the same, for each robot
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server():
    with serving() as running:
        yield running


async def at_home(host, port):
    return ["127.0.0.1"]


def fetcher(port, product="semantica"):
    config = FetchConfig(product=product, contact="a@b.example", per_host_per_second=1000.0, ports=(port,), max_retries=0)
    return Fetcher(config, resolve=at_home, allowed=lambda address, where: where == port)


def urls_of(server, num):
    return [f"http://h{i % 3}.example:{server.server_port}/{'missing' if i % 5 == 4 else 'a'}{i}.png" for i in range(num)]


def body_of(url):
    return f"body of {path_of(url)}".encode() * 50


def path_of(url):
    return f"/{url.rpartition('/')[2]}"


def shards(folder):
    return [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_what_was_fetched_is_found_again(server, tmp_path, where, monkeypatch):
    monkeypatch.setattr(fetch_store, "GROUP_BYTES", 1500)  # so that a batch has several row groups
    folder = tmp_path / "fetched" if where == "disk" else location(f"memory://fetched/{tmp_path.name}")
    urls = urls_of(server, 20)
    counts = fetch_into(folder, "part", [*urls, *urls], fetcher(server.server_port), 8)
    num_bytes = sum(len(body_of(url)) for url in urls if "missing" not in url)
    expected = {"num_urls": 20, "num_fetched": 16, "num_fetch_status": 4, "num_bytes": num_bytes, "num_batches": 3}
    assert counts == expected
    assert set(server.hits.values()) == {1, 3}  # 3: robots.txt of three hosts
    found = FetchedPictures(folder, "part")
    assert len(found) == 20
    for url in reversed(urls):
        result = found.find(url)
        assert result is not None
        assert result.url == result.final_url == url
        assert (result.data, result.problem) == ((None, "fetch_status") if "missing" in url else (body_of(url), ""))
    assert found.find("http://never.example/asked") is None
    assert len(FetchedPictures(folder, "another")) == 0
    with (folder / "part-00000.parquet").open("rb") as stream:
        assert pq.ParquetFile(stream).num_row_groups > 1
    server.hits.clear()
    assert fetch_into(folder, "part", urls, fetcher(server.server_port), 8) == expected
    assert not server.hits


CHILD = """
import sys
from pathlib import Path
from semantica.episodes.fetch import FetchConfig
from semantica.episodes.fetch.fetcher import Fetcher
from semantica.episodes.fetch.store import fetch_into

async def at_home(host, port):
    return ["127.0.0.1"]

port = int(sys.argv[2])
config = FetchConfig(contact="a@b.example", per_host_per_second=1000.0, ports=(port,), max_retries=0)
fetcher = Fetcher(config, resolve=at_home, allowed=lambda address, where: where == port)
fetch_into(Path(sys.argv[1]), "part", sys.argv[3:], fetcher, 8)
"""


def test_after_a_kill_only_the_interrupted_batch_is_fetched_again(server, tmp_path):
    urls = urls_of(server, 24)
    in_second_batch, go_on = threading.Event(), threading.Event()

    def hold(total):
        if total > 8 + 3 + 4:  # the first batch, three robots.txt, half of the second batch
            in_second_batch.set()
            go_on.wait(20)

    server.hold = hold
    words = [sys.executable, "-c", CHILD, str(tmp_path / "fetched"), str(server.server_port), *urls]
    with subprocess.Popen(words) as child:
        assert in_second_batch.wait(60)
        child.kill()
    go_on.set()
    assert child.returncode == -9
    assert [path.name for path in (tmp_path / "fetched").glob("*.parquet")] == ["part-00000.parquet"]
    server.hold = lambda total: None
    # Under another name, since requests of the killed one may still wait at the server's door.
    counts = fetch_into(tmp_path / "fetched", "part", urls, fetcher(server.server_port, "resumed"), 8)
    again = server.hits_of["resumed"]
    assert [again[path_of(url)] for url in urls] == [0] * 8 + [1] * 16
    assert counts == fetch_into(tmp_path / "straight", "part", urls, fetcher(server.server_port), 8)
    assert shards(tmp_path / "fetched") == shards(tmp_path / "straight")


def test_a_batch_that_is_damaged_or_of_other_urls_is_fetched_again(server, tmp_path):
    urls = urls_of(server, 16)
    fetch_into(tmp_path, "part", urls, fetcher(server.server_port), 8)
    whole = shards(tmp_path)
    second = tmp_path / "part-00001.parquet"
    second.write_bytes(second.read_bytes()[:-100])
    server.hits.clear()
    fetch_into(tmp_path, "part", urls, fetcher(server.server_port), 8)
    assert shards(tmp_path) == whole
    assert sum(num for path, num in server.hits.items() if path != "/robots.txt") == 8
    server.hits.clear()
    fetch_into(tmp_path, "part", [*urls[:8], *urls[9:]], fetcher(server.server_port), 8)
    assert sum(num for path, num in server.hits.items() if path != "/robots.txt") == 7
    assert FetchedPictures(tmp_path, "part").find(urls[8]) is None


def test_nothing_to_fetch_is_no_file(tmp_path, server):
    counts = fetch_into(tmp_path, "part", [], fetcher(server.server_port), 8)
    assert counts == {"num_urls": 0, "num_fetched": 0, "num_bytes": 0, "num_batches": 0}
    assert list(tmp_path.iterdir()) == []


def test_a_url_that_is_no_text_is_refused_and_found(tmp_path, server):
    odd = "http://h.example/\udcff.png"
    assert fetch_into(tmp_path, "part", [odd], fetcher(server.server_port), 8)["num_bad_url"] == 1
    found = FetchedPictures(tmp_path, "part").find(odd)
    assert found is not None
    assert found.problem == Reason.BAD_URL


def page(server, **settings):
    good, missing = urls_of(server, 5)[0], urls_of(server, 5)[4]
    images = (
        ImageRef("local.png", path="/crawl/local.png"),
        ImageRef(good, problem=Reason.REMOTE_URL, detail="not in the crawl"),
        ImageRef("relative.png", problem=Reason.NOT_IN_ARCHIVE),
        ImageRef(missing, problem=Reason.NOT_IN_ARCHIVE),
        ImageRef("http://a.example/never", problem=Reason.REMOTE_URL),
        ImageRef("http://a.example/bad", problem=Reason.BAD_URL),
        ImageRef(good, problem=Reason.REMOTE_URL),
    )
    return Page("http://a.example/", images, **settings)


def test_a_page_gets_what_was_fetched_and_keeps_the_rest(server, tmp_path):
    before = page(server)
    good, missing = before.images[1].url, before.images[3].url
    assert fetchable_urls(before) == [good, missing, "http://a.example/never"]
    fetch_into(tmp_path, "part", [good, missing], fetcher(server.server_port), 8)
    after = resolve(before, FetchedPictures(tmp_path, "part"))
    assert [image.url for image in after.images] == [image.url for image in before.images]
    fetched = ImageRef(good, data=body_of(good))
    gone = ImageRef(missing, problem=Reason.FETCH_STATUS, detail="status 404")
    assert after.images == (before.images[0], fetched, before.images[2], gone, before.images[4], before.images[5], fetched)


def test_a_page_cut_to_a_sample_costs_its_sample_alone(server, tmp_path):
    whole = Page("http://a.example/", tuple(ImageRef(url, problem=Reason.REMOTE_URL) for url in urls_of(server, 12)))
    cut = replace(whole, images=whole.images[1:8:3])
    urls = [image.url for image in cut.images]
    assert fetchable_urls(cut) == urls
    counts = fetch_into(tmp_path, "part", fetchable_urls(cut), fetcher(server.server_port), 8)
    assert sum(num for path, num in server.hits.items() if path != "/robots.txt") == counts["num_urls"] == 3
    found = FetchedPictures(tmp_path, "part")
    after = resolve(cut, found)
    assert [image.url for image in after.images] == urls
    assert [image.problem or image.data for image in after.images] == [body_of(urls[0]), Reason.FETCH_STATUS, body_of(urls[2])]
    rest = resolve(whole, found).images  # nothing was asked of the others, so they stay as they were
    assert [image for image in rest if image.url not in urls] == [image for image in whole.images if image.url not in urls]


@pytest.mark.parametrize("directive", ["noai", "noimageai", "noindex", "noimageindex", "none"])
def test_a_page_that_opted_out_is_not_fetched_for(server, tmp_path, directive):
    before = page(server, opt_out=("nofollow", directive))
    assert fetchable_urls(before) == []
    fetch_into(tmp_path, "part", [before.images[1].url], fetcher(server.server_port), 8)  # another page showed it too
    found = FetchedPictures(tmp_path, "part")
    remote = [1, 3, 4, 6]
    after = resolve(before, found)
    assert [after.images[i].problem for i in remote] == [Reason.OPTED_OUT] * 4
    assert all(directive in after.images[i].detail for i in remote)
    assert [image for i, image in enumerate(after.images) if i not in remote] == [before.images[i] for i in (0, 2, 5)]
    assert fetchable_urls(before, respect_opt_out=False) == fetchable_urls(page(server))
    assert resolve(before, found, respect_opt_out=False).images[1].data is not None
