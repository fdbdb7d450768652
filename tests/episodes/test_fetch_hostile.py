"""The wall of the fetcher: 60 URLs that want into a private network, and no socket is made for one."""

import asyncio
import contextlib
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from semantica.episodes.fetch import FetchConfig
from semantica.episodes.fetch.address import Blocked, checked_connector, checked_socket, is_public
from semantica.episodes.fetch.fetcher import Fetcher
from semantica.episodes.quarantine import Reason, Refused

_EVENTS = []  # what Python itself says of sockets, whoever makes them
_LISTENING = threading.Event()


def _hook(event, values):
    if _LISTENING.is_set() and event in ("socket.__new__", "socket.connect", "socket.sendto"):
        _EVENTS.append((event, values))


sys.addaudithook(_hook)


@contextlib.contextmanager
def watched():
    """A list of (event, address) of every internet socket made and connected in the block; an audit hook cannot be passed by."""
    _EVENTS.clear()
    _LISTENING.set()
    found = []
    try:
        yield found
    finally:
        _LISTENING.clear()
        for event, values in _EVENTS:
            if event == "socket.__new__" and values[1] in (socket.AF_INET, socket.AF_INET6):
                found.append((event, None))
            elif event != "socket.__new__" and values[0].family in (socket.AF_INET, socket.AF_INET6):
                found.append((event, values[1][:2]))


@contextlib.contextmanager
def serving(answer):
    """(port, paths asked for) of a real server on 127.0.0.1; `answer` gives status and headers for a path."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.headers["Host"], self.path))
            status, headers = answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        def get_request(self):
            request = super().get_request()
            asked.append(("connection", request[1]))
            return request

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


PUBLIC = "93.184.215.14"
NAMES = {  # one answer after the other; the last one stays
    "loopback.example": [["127.0.0.1"]],
    "loopback6.example": [["::1"]],
    "private.example": [["10.1.2.3"]],
    "private172.example": [["172.31.255.254"]],
    "private192.example": [["192.168.0.1"]],
    "metadata.example": [["169.254.169.254"]],
    "metadata6.example": [["fd00:ec2::254"]],
    "azure.example": [["168.63.129.16"]],
    "cgnat.example": [["100.64.0.1"]],
    "zero.example": [["0.0.0.0"]],
    "unspecified.example": [["::"]],
    "broadcast.example": [["255.255.255.255"]],
    "multicast.example": [["224.0.0.251"]],
    "multicast6.example": [["ff02::1"]],
    "documentation.example": [["203.0.113.7"]],
    "benchmark.example": [["198.18.0.1"]],
    "linklocal6.example": [["fe80::1"]],
    "zone.example": [["fe80::1%1"]],
    "public-zone.example": [["2600::1%1"]],
    "sitelocal.example": [["fec0::1"]],
    "mapped.example": [["::ffff:127.0.0.1"]],
    "compatible.example": [["::127.0.0.1"]],
    "nat64.example": [["64:ff9b::127.0.0.1"]],
    "nat64-private.example": [["64:ff9b::a01:203"]],
    "nat64-local.example": [["64:ff9b:1::808:808"]],
    "6to4.example": [["2002:7f00:1::1"]],
    "teredo.example": [["2001:0:4136:e378:8000:63bf:3fff:fdd2"]],
    "mixed.example": [[PUBLIC, "127.0.0.1"]],
    "mixed6.example": [["2600::1", "fe80::1"]],
    "not-an-address.example": [["localhost"]],
    "open.example": [["127.0.0.1"]],  # allowed on the one port of the redirecting server, and blocked on every other
    "rebound.example": [["127.0.0.1"], ["127.0.0.2"]],
}

# PORT is the port of a real server on 127.0.0.1, on the list of allowed ports, so that nothing but the address can refuse it.
DIRECT = [
    "http://127.0.0.1:PORT/",
    "http://127.1:PORT/",
    "http://2130706433:PORT/",
    "http://0x7f000001:PORT/",
    "http://0x7f.0.0.1:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://127.0.0.1.:PORT/",
    "http://１２７．０．０．１:PORT/",
    "http://127。0。0。1:PORT/",
    "http://①②⑦.⓪.⓪.①:PORT/",
    "http://127%2e0%2e0%2e1:PORT/",
    "http://0:PORT/",
    "http://[::1]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/",
    "http://[fe80::1%25lo]:PORT/",
    "http://localhost:PORT/",
    "http://ⓛocalhost:PORT/",
    "http://x.localhost.:PORT/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://metadata/",
    "http://router.local/",
    "http://93.184.215.14@127.0.0.1:PORT/",
    "http://93.184.215.14\\@127.0.0.1:PORT/",
    "http://open.example:PORT\r\nHost: 127.0.0.1/",
    "http://private.example:22/",
    "http://private.example:6379/",
    "file:///etc/passwd",
    "ftp://127.0.0.1/x.png",
    "gopher://127.0.0.1:PORT/_GET",
    "data:image/png;base64,AAAA",
    *(f"http://{name}:PORT/" for name in NAMES if name not in ("open.example", "rebound.example")),
]
# Location headers of the one server that may be reached.
REDIRECTS = [
    "http://127.0.0.1:PORT/",
    "//127.0.0.1:PORT/",
    "http://[::1]:PORT/",
    "http://loopback.example:PORT/",
    "http://rebound.example:PORT/",  # that name was at an allowed address a moment ago
    "http://mixed.example:PORT/",
    "http://169.254.169.254/latest/meta-data/",
    "http://open.example:PORT/",
    "http://open.example@127.0.0.1:PORT/",
    "file:///etc/passwd",
    "http://0x7f.1:PORT/",
    "http://nat64.example:PORT/",
]


def resolver():
    """A resolver that knows NAMES, and nothing of the internet."""
    answers = {name: list(given) for name, given in NAMES.items()}

    async def resolve(host, port):
        known = answers.get(host)
        if known is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown name")
        return known.pop(0) if len(known) > 1 else known[0]

    return resolve


def config(*ports):
    return FetchConfig(
        ports=(80, 443, *ports), per_host_per_second=1000.0, max_retries=0, total_timeout_s=5.0, contact="a@b.example"
    )


def test_60_hostile_urls_are_refused_direct():
    assert len(DIRECT) >= 60
    with serving(lambda path: (200, {})) as (port, asked):
        urls = [url.replace("PORT", str(port)) for url in DIRECT]
        with watched() as sockets:
            results = {result.url: result for result in Fetcher(config(port), resolve=resolver()).fetch_all(urls)}
    assert results.keys() == set(urls)
    assert {url: r.problem for url, r in results.items() if r.problem not in (Reason.ADDRESS_BLOCKED, Reason.BAD_URL)} == {}
    assert all(result.data is None for result in results.values())
    assert sockets == []  # not one internet socket was made
    assert asked == []


def test_every_redirect_to_a_blocked_address_is_refused():
    with serving(lambda path: (200, {})) as (secret, secret_asked):

        def answer(path):
            if not path.startswith("/to/"):
                return 404, {}
            return 302, {"Location": REDIRECTS[int(path.removeprefix("/to/"))].replace("PORT", str(secret))}

        with serving(answer) as (port, asked):

            def allowed(address, where):
                return (str(address), where) == ("127.0.0.1", port) or is_public(address, where)

            urls = [
                f"http://{'rebound' if 'rebound' in target else 'open'}.example:{port}/to/{i}" for i, target in enumerate(REDIRECTS)
            ]
            with watched() as sockets:
                fetcher = Fetcher(config(port, secret), resolve=resolver(), allowed=allowed)
                results = {result.url: result for result in fetcher.fetch_all(urls)}
    bad = {r.url: r.problem for r in results.values() if r.problem not in (Reason.ADDRESS_BLOCKED, Reason.BAD_URL)}
    assert len(results) == len(REDIRECTS)
    assert bad == {}
    assert sum(path.startswith("/to/") for _, path in asked if isinstance(path, str)) == len(urls)  # every redirect was followed
    assert {address for event, address in sockets if event == "socket.connect"} == {("127.0.0.1", port)}
    assert secret_asked == []


def test_a_robots_txt_that_redirects_to_a_blocked_address_is_refused():
    with serving(lambda path: (200, {})) as (secret, secret_asked):
        with serving(lambda path: (301, {"Location": f"http://127.0.0.1:{secret}/"})) as (port, asked):
            allowed = lambda address, where: where == port  # noqa: E731
            fetcher = Fetcher(config(port, secret), resolve=resolver(), allowed=allowed)
            (result,) = fetcher.fetch_all([f"http://open.example:{port}/a.png"])
        assert result.problem == Reason.ADDRESS_BLOCKED
        assert [path for _, path in asked if isinstance(path, str)] == ["/robots.txt"]
        assert secret_asked == []


@pytest.mark.parametrize("address", [("127.0.0.1", 80), ("10.0.0.1", 443), ("::1", 80, 0, 0), ("2600::1", 80, 0, 3), ("host", 80)])
def test_no_socket_is_made_for_a_blocked_address_even_when_all_else_let_it_pass(address):
    family = socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    with watched() as sockets, pytest.raises(Blocked):
        checked_socket((family, socket.SOCK_STREAM, 6, "", address), is_public)
    assert sockets == []


def test_the_connector_itself_refuses_an_address_written_as_host():
    """aiohttp asks no resolver for these, so the check of the socket has to hold alone."""

    async def connect():
        import aiohttp

        async with aiohttp.ClientSession(connector=checked_connector(resolver(), is_public)) as session:
            with pytest.raises(aiohttp.ClientConnectorError) as caught:
                await session.get("http://127.0.0.1:80/")
            assert isinstance(caught.value.os_error, Blocked)
            with pytest.raises(Refused):
                await session.get("http://loopback.example:80/")

    with watched() as sockets:
        asyncio.run(connect())
    assert sockets == []
