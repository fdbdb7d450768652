"""The guides' commands, as they stand on the pages: run in order in a checkout of their own, with small pictures and settings."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from small import draw_pages, random_encoder, run_stages, small_config

from semantica.config import override, to_dict
from semantica.distributed.runtime import ClusterConfig, Runtime
from semantica.distributed.train import MODEL
from semantica.sweeps.ranking import winner
from semantica.sweeps.results import read_results
from semantica.sweeps.settings import SweepConfig
from semantica.tracking import TrackingConfig
from semantica.training.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
pytestmark = [pytest.mark.ray, pytest.mark.slow]  # tests/test_documented_commands.py has the parsers read every command
RUNTIME = Runtime(cluster=ClusterConfig(num_actors=1, num_workers=1, cpus_per_worker=0.5))


@dataclass(frozen=True)
class Block:
    """A block of a page: its language, the word after it ("head", "page", "fails" or ""), its text."""

    language: str
    role: str
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(*match) for match in BLOCK.findall((ROOT / "docs" / page).read_text())]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The packages and what the guides start from: `my-pictures` and `my.yaml`."""
    for name in ("semantica", "jobs", "tune"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    draw_pages(tmp_path / "my-pictures")
    return tmp_path


class Shell:
    """One bash for a page, with its variables, in which blocks run one after the other, on ports that are free here."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.before = folder, ""
        self.ports = {port: str(free_port()) for port in ("6379", "8265", "5000")}
        self.env = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.env.pop("RAY_ADDRESS", None)

    def here(self, text: str) -> str:
        return re.sub(r"\b(6379|8265|5000)\b", lambda match: self.ports[match[0]], text)

    def run(self, block: Block) -> subprocess.CompletedProcess[str]:
        if block.language == "python":
            words = [sys.executable, "-c", block.text]
            exported = f'{self.before}\nexec "$@"'
        else:
            words = []
            exported = f"set -e\n{self.before}\n{self.here(block.text)}"
            self.before += "".join(f"{line}\n" for line in self.here(block.text).splitlines() if line.startswith("export "))
        return subprocess.run(
            ["bash", "-c", exported, "bash", *words],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def start(self, block: Block, log: Path) -> subprocess.Popen[str]:
        # The Ray of the other tests has the port that agents listen on unless told otherwise.
        beside = f"--dashboard-agent-listen-port={free_port()}" if block.role == "head" else ""
        with log.open("w") as stream:
            return subprocess.Popen(
                ["bash", "-c", f"{self.before}\nexec env {self.here(block.text).strip()} {beside}"],
                cwd=self.folder,
                env=self.env,
                stdout=stream,
                stderr=stream,
                text=True,
            )


def answers(url: str, seconds: float = 90) -> bool:
    import urllib.request

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            time.sleep(0.5)
    return False


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """What a page starts, ended by its own process id."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.terminate()
        process.wait(timeout=60)


def take_jobs(shell: Shell, seconds: float = 90) -> None:
    """Wait for the head's agent, as the guide says: the page of a head answers before it."""
    deadline = time.monotonic() + seconds
    probe = Block("bash", "", "RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 ray job submit -- true")
    while (done := shell.run(probe)).returncode:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(1)


def follow(page: str, shell: Shell, started: list[subprocess.Popen[str]], url: str) -> list[str]:
    """Run the page. Returns what its blocks printed."""
    printed = []
    for block in blocks(page):
        if block.role in ("head", "page"):
            started.append(shell.start(block, shell.folder / f"{block.role}.log"))
            assert answers(shell.here(url)), (shell.folder / f"{block.role}.log").read_text()
            if block.role == "head":
                take_jobs(shell)
            continue
        done = shell.run(block)
        assert (done.returncode != 0) == (block.role == "fails"), f"{block.text}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout + done.stderr)
    return printed


def test_every_command_of_the_guide_to_jobs_does_what_it_says(checkout: Path, started: list[subprocess.Popen[str]]) -> None:
    config = small_config(random_encoder(checkout / "encoder"))
    asked = {"pipeline": to_dict(config), "runtime": to_dict(RUNTIME) | {"tracking": {"uri": "off"}}}
    (checkout / "my.yaml").write_text(yaml.safe_dump(asked))
    submitted, stopped, whole, failed, stage, python = follow(
        "guides/submit-a-job.md", Shell(checkout), started, "http://127.0.0.1:8265/api/version"
    )
    assert "first" in submitted
    assert "stopped" in stopped.lower()
    assert "Report:" in whole
    assert "error: band must be -1 <= low < high <= 1, got (0.9, 0.3)" in failed
    assert "pairs" in stage
    assert "already done" in python
    assert "num_pairs_kept" in python


def test_every_command_of_the_guide_to_comparing_runs_does_what_it_says(
    checkout: Path, started: list[subprocess.Popen[str]], local_ray: None
) -> None:
    config = small_config(random_encoder(checkout / "encoder"))
    run_stages(config, checkout / "my-pictures", checkout / "runs" / "mine", Runtime(tracking=TrackingConfig(uri="off")))
    shutil.rmtree(checkout / "runs" / "mine" / "checkpoint")
    (checkout / "my.yaml").write_text(yaml.safe_dump({"train": to_dict(config.train), "runtime": to_dict(RUNTIME)}))
    _, table, listed = follow("guides/compare-runs.md", Shell(checkout), started, "http://127.0.0.1:5000/health")
    assert "0.004" in table
    assert "0.002" in table
    assert listed.count("train") == 2


def test_every_command_of_the_guide_to_sweeps_does_what_it_says(
    checkout: Path, started: list[subprocess.Popen[str]], local_ray: None
) -> None:
    config = small_config(random_encoder(checkout / "encoder"))
    run_stages(config, checkout / "my-pictures", checkout / "runs" / "mine", Runtime(tracking=TrackingConfig(uri="off")))
    empty = {"space.patching": [], "space.learning_rate": [], "space.band": [], "space.conditioning": []}
    measured = {"measure.num_points": 2, "measure.num": 16, "measure.sampler.num_steps": 2}
    sweep = override(SweepConfig(), empty | measured)
    given = {"sweep": sweep, "band": config.band, "train": config.train, "runtime": RUNTIME}
    (checkout / "my.yaml").write_text(yaml.safe_dump({name: to_dict(section) for name, section in given.items()}))

    swept, _, searched, resumed = follow("guides/sweeps.md", Shell(checkout), started, "http://127.0.0.1:5000/health")
    assert "2 trials" in swept
    assert "3 trials" in searched
    assert "already done" in resumed
    out = checkout / "runs"
    assert [result.settings["learning_rate"] for result in read_results(out / "sweep")] == [1e-3, 2e-3]
    assert len({result.settings["learning_rate"] for result in read_results(out / "searched")}) == 3
    best = winner(read_results(out / "sweep"))
    assert best is not None
    trained = open_checkpoint(out / "best" / MODEL)
    assert trained.step == config.train.num_steps
    assert trained.config.optimizer.learning_rate == best.settings["learning_rate"]
