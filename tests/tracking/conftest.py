"""A real MLflow server that can be ended and started again, and a proxy before it that is slow or fails."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from mlflow import MlflowClient


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """`mlflow server` on loopback over a SQLite file. It is not running until `start`."""

    def __init__(self, folder):
        self.folder, self.port, self.process = folder, free_port(), None
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = f"sqlite:///{folder}/mlflow.db"

    def start(self):
        words = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--backend-store-uri", self.database, "--artifacts-destination", str(self.folder / "artifacts")]
        # Without its consumers of jobs, which nobody gives: each is another Python that imports MLflow, and there are seven.
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = (self.folder / "server.log").open("a")
        self.process = subprocess.Popen(words, start_new_session=True, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 120
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the server did not start in two minutes"
            time.sleep(0.1)

    def answers(self):
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=1).status == 200
        except (OSError, http.client.HTTPException):  # another program had the port a moment ago
            return False

    def kill(self):
        """SIGKILL to the server and to its workers, which are in a group of their own."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def runs(self, experiment):
        """What is in its database, read past it."""
        client = MlflowClient(tracking_uri=self.database)
        found = client.get_experiment_by_name(experiment)
        return client.search_runs([found.experiment_id], order_by=["start_time ASC"]) if found else []

    def history(self, run, name="loss"):
        """[(step, value)] of a metric, in the order of time."""
        history = MlflowClient(tracking_uri=self.database).get_metric_history(run.info.run_id, name)
        return [(m.step, m.value) for m in sorted(history, key=lambda m: m.timestamp)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.kill()


class Proxy(ThreadingHTTPServer):
    """Passes requests on to the server after `delay_s`; or answers `fail_with`; or passes on and keeps `lost_answers` back."""

    daemon_threads = True

    def __init__(self, server):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.delay_s, self.fail_with, self.lost_answers = server.port, 0.0, None, 0
        self.fail_artifacts = False
        self.asked = []
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    def answer(self):
        proxy = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy.asked.append(self.path.partition("?")[0])
        time.sleep(proxy.delay_s)
        if proxy.fail_with or (proxy.fail_artifacts and "mlflow-artifacts" in self.path):
            self.send_response(proxy.fail_with or 500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection("127.0.0.1", proxy.target)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        connection.request(self.command, self.path, body, {**headers, "Host": f"127.0.0.1:{proxy.target}"})
        answer = connection.getresponse()
        data = answer.read()
        if proxy.lost_answers and self.command == "POST" and not self.path.partition("?")[0].endswith("/search"):
            proxy.lost_answers -= 1
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type") or "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_PATCH = answer

    def log_message(self, *words):
        pass


@pytest.fixture
def proxy(server):
    made = Proxy(server)
    yield made
    made.shutdown()
    made.server_close()
