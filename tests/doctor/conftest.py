"""A listener on loopback that is really there, one that says nothing, and a web server that says what a test wants."""

import contextlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@pytest.fixture
def listener():
    """A socket that this process holds; it takes connections and says nothing."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held


@pytest.fixture
def free_port():
    """A port that nobody holds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def web():
    """web(status, body) is the address of a server that answers every request so; web.asked are the requests' headers."""

    class Web:
        def __init__(self):
            self.asked, self.servers = [], []

        def __call__(self, status, body, **headers):
            asked = self.asked

            class Handler(BaseHTTPRequestHandler):
                def do_GET(self):
                    asked.append(dict(self.headers))
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body.encode())

                def log_message(self, *words):
                    pass

            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.servers.append(server)
            return f"http://127.0.0.1:{server.server_address[1]}"

    made = Web()
    yield made
    for server in made.servers:
        with contextlib.suppress(OSError):
            server.shutdown()
            server.server_close()
