"""A job through `ray job submit`, on a head of its own: it runs, its log comes back, and its exit code carries through."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small import draw_pages

from semantica.datasets import read_manifest
from semantica.distributed.session import check_absolute_when_submitted
from semantica.errors import ConfigError

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which `ray job submit` finds a head started for these tests; ended by its own process id."""
    port, dashboard, agent = free_port(), free_port(), free_port()
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    env.pop("RAY_ADDRESS", None)
    # Short, because a socket's path may have 107 characters.
    scratch = tmp_path_factory.mktemp("head")
    words = [
        BIN / "ray", "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", "--num-cpus=2", "--object-store-memory=100000000",
    ]  # fmt: skip
    with (scratch / "head.log").open("w") as log:
        process = subprocess.Popen([str(w) for w in words], env=env, stdout=log, stderr=log)
    try:
        env["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
        deadline = time.monotonic() + 90
        while subprocess.run([BIN / "ray", "job", "list"], env=env, capture_output=True, check=False).returncode:
            assert process.poll() is None, (scratch / "head.log").read_text()
            assert time.monotonic() < deadline, "the head's job server did not answer in 90 s"
            time.sleep(1)
        yield env
    finally:
        process.terminate()
        process.wait(timeout=60)


def submit(env: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--", "python", "-m", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.ray
def test_a_submitted_job_does_its_work_and_a_failed_one_says_why(head: dict[str, str], tmp_path: Path) -> None:
    root = draw_pages(tmp_path / "pictures", num_pages=3)
    out = tmp_path / "run" / "episodes"
    done = submit(head, "jobs.ingest", "--root", root, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ingest" in done.stdout
    assert read_manifest(out, "episodes").counts["num_images_in"] == 21

    failed = submit(head, "jobs.ingest", "--root", tmp_path / "nothing", "--out", tmp_path / "out")
    assert failed.returncode != 0
    line = next(line for line in failed.stdout.splitlines() if line.startswith("error: ingest"))
    assert str(tmp_path / "nothing") in line


def test_a_submitted_job_refuses_a_relative_output() -> None:
    """`ray job submit --working-dir` runs in a folder of this name, which goes with the job."""
    with pytest.raises(ConfigError, match="needs absolute paths"):
        check_absolute_when_submitted(Path("/ray/session/runtime_resources/working_dir_files/_ray_pkg_0/runs/episodes"))


@pytest.mark.ray
def test_a_local_run_does_not_join_a_head_that_happens_to_run(head: dict[str, str], tmp_path: Path) -> None:
    env = {name: value for name, value in head.items() if name != "RAY_API_SERVER_ADDRESS"}
    root = draw_pages(tmp_path / "pictures", num_pages=3)
    words = [sys.executable, "-m", "jobs.ingest", "--root", str(root), "--out", str(tmp_path / "run" / "episodes")]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr  # joined to the head, Ray would refuse its CPU count
