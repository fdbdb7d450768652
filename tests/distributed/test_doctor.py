"""The part of semantica doctor that knows Ray, on a real head with tokens on; and the whole command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray

from semantica.distributed.doctor import check_cluster
from semantica.doctor.finding import Finding
from semantica.jobs.doctor import main

BIN = Path(sys.executable).parent
TOKEN = "a-token-of-the-tests-0123456789abcdef"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def look(address: str, seconds: float = 10.0, **variables: str) -> Finding:
    (finding,) = check_cluster(address, {"HOME": "/nonexistent", **variables}, seconds=seconds)
    return finding


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(HOST:PORT of the head, address of its dashboard), with tokens on; ended by its own process id."""
    port, dashboard, agent = free_port(), free_port(), free_port()
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    env.pop("RAY_ADDRESS", None)
    words = [
        BIN / "ray", "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", "--num-cpus=1", "--object-store-memory=100000000",
    ]  # fmt: skip
    log_file = tmp_path_factory.mktemp("head") / "head.log"
    with log_file.open("w") as log:
        process = subprocess.Popen([str(w) for w in words], env=env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while look(f"http://127.0.0.1:{dashboard}", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN).status != "OK":
            assert process.poll() is None, log_file.read_text()
            assert time.monotonic() < deadline, "the head's dashboard did not answer in 120 s"
            time.sleep(1)
        yield f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.ray
def test_a_head_with_tokens_lets_in_who_has_the_token(head: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    address, dashboard = head
    right = look(dashboard, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    assert (right.status, right.found) == ("OK", f"{dashboard} runs Ray {ray.__version__}")
    none = look(dashboard)
    assert none.status == "FAIL"
    assert "wants a token" in none.found
    wrong = look(dashboard, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="another")
    assert wrong.status == "FAIL"
    assert "refuses the token of RAY_AUTH_TOKEN" in wrong.found
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert look(address, seconds=20.0).status == "OK"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    assert look(address, seconds=20.0).status == "FAIL"


def test_a_dead_address_fails_at_once_whatever_its_form() -> None:
    port = free_port()
    for address in (f"127.0.0.1:{port}", f"http://127.0.0.1:{port}"):
        finding = look(address)
        assert finding.status == "FAIL"
        assert finding.remedy


def test_an_address_that_says_nothing_fails_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        finding = look(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.5)
        assert finding.status == "FAIL"
        gcs = look(f"127.0.0.1:{silent.getsockname()[1]}", seconds=1.0)
        assert gcs.status == "FAIL"
        assert time.monotonic() - started < 60


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "ftp://127.0.0.1", "head", "head:port"])
def test_an_address_that_is_none_says_what_one_is(address: str) -> None:
    finding = look(address)
    assert finding.status == "FAIL"
    assert "HOST" in finding.remedy


def test_another_ray_is_a_warning_and_a_token_is_not_carried_to_where_an_answer_points() -> None:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Authorization')}")
            if self.path == "/api/version":
                self.send_response(302)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
            else:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'{"ray_version": "2.9.0"}')

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        finding = look(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    finally:
        server.shutdown()
    assert finding.status == "WARN"
    assert "runs Ray 2.9.0" in finding.found
    assert asked == [f"/api/version Bearer {TOKEN}", "/elsewhere None"]


def test_the_command_says_all_as_json_and_ends_with_one_when_something_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    dead = f"http://127.0.0.1:{free_port()}"
    assert main(["--json", "--out", str(tmp_path / "runs"), "--tracking.uri", dead]) == 1
    told = json.loads(capsys.readouterr().out)
    status = {finding["name"]: finding["status"] for finding in told["findings"]}
    assert told["worst"] == "FAIL"
    assert status["mlflow.reachable"] == "FAIL"
    assert status["storage.rename"] == "OK"
    kinds = ["versions", "devices", "ports", "authentication", "storage", "weights", "mlflow"]
    assert list(dict.fromkeys(name.partition(".")[0] for name in status)) == kinds
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_with_two_when_it_is_called_wrongly(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--no-such-flag"])
    assert ended.value.code == 2
    assert main(["--preset", "no-such-preset"]) == 2
    assert "no-such-preset" in capsys.readouterr().err
