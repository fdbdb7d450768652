"""A real HTTP server on this machine that answers as a test says, and a fetcher that may go nowhere else."""

import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from semantica.episodes.fetch import FetchConfig
from semantica.episodes.fetch.fetcher import Fetcher


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
