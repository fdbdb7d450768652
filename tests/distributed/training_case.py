"""One training that `test_training_faults.py` starts, disturbs and compares with the undisturbed one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semantica.config import to_dict
from semantica.data.dataset import MANIFEST
from semantica.distributed.train import MODEL
from semantica.training.checkpoint import open_checkpoint
from semantica.training.recipe import TrainConfig

ROOT = Path(__file__).parents[2]
NUM_STEPS = 64
STEP_S = 0.05  # that a step takes longer here, so that it can be hit
QUICK = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "0",
}


@dataclass(frozen=True)
class Case:
    """The inputs of a training and its configuration; `whole` is the undisturbed run by two workers, with its record."""

    base: Path
    config: TrainConfig

    @property
    def whole(self) -> Path:
        return self.base / "whole"

    def job(self, folder: Path, config: TrainConfig | None = None, **cluster: object) -> dict[str, Any]:
        """The training into `folder`, with its record and how many workers."""
        size = {"num_workers": 2, "cpus_per_worker": 1.0, "num_cpus": 2, "object_store_mb": 100, "max_failures": 40}
        paths = {"encodings": str(self.base / "encodings"), "selection": str(self.base / "selection"), "out": str(folder / "out")}
        runtime = {"cluster": {**size, **cluster}, "tracking": {"uri": "off"}}
        values = {**paths, "train": to_dict(config or self.config), "runtime": runtime}
        return {"job": values, "record": str(folder / "record"), "step_s": STEP_S}


def run(job: dict[str, Any], timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """The script, to its end."""
    return subprocess.run(_words(job), cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=timeout, check=False)


def _words(job: dict[str, Any]) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("training_chaos.py")), json.dumps(job)]


def _environment() -> dict[str, str]:
    """With cold workers, as users have them: what is killed here is to end and start as Ray does it."""
    cold = {name: value for name, value in os.environ.items() if name != "SEMANTICA_TEST_WARM_PYTHON"}
    return {**cold, **QUICK, "PYTHONPATH": str(ROOT)}


def started(job: dict[str, Any]) -> subprocess.Popen[str]:
    """The script, in a session of its own as a service is."""
    return subprocess.Popen(
        _words(job), cwd=ROOT, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for_step(process: subprocess.Popen[str], job: dict[str, Any], step: int, newer_than: float) -> None:
    """Come back when the first worker, of this attempt, is at `step`."""
    place, deadline = Path(job["record"], "at-0"), time.monotonic() + 120
    while not (place.exists() and place.stat().st_mtime > newer_than and int(place.read_text().split()[0]) >= step):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, f"step {step} was not reached in two minutes"
        time.sleep(0.005)


def under_fire(job: dict[str, Any], kills: Sequence[str], at: Sequence[int]) -> tuple[list[dict[str, Any]], int]:
    """What was killed, and how many groups failed: a training while one thing after another is killed, at each step of `at`."""
    done = run({**job, "kill": list(kills), "at": list(at)})
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"killed"')))
    Path(job["record"], "killed.json").write_text(json.dumps(said["killed"]))  # for a person
    assert not said["failed"], said
    assert [strike["step"] for strike in said["killed"]] == list(at)  # all, before the end
    lost = re.search(r"(\d+) groups of workers, one after the other; (\d+) of them failed", done.stderr)
    assert lost, done.stderr[-3000:]
    return said["killed"], int(lost[2])


def losses(out: Path) -> list[tuple[int, float, float, float]]:
    """(step, loss, gradient norm, learning rate) of every step of the history."""
    return [(h["step"], h["loss"], h["grad_norm"], h["learning_rate"]) for h in json.loads((out / "history.json").read_text())]


def trained_on(record: Path) -> list[tuple[int, int, str]]:
    """(step, slot, digest of picture, tokens and noise) of everything that any worker trained on, again and again if it did."""
    found = []
    for path in record.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            try:
                said = json.loads(line)
            except ValueError:  # half a line, of a worker that was killed
                continue
            found += [(said["step"], int(slot), digest) for slot, digest in said["slots"].items()]
    return found


def assert_same(case: Case, folder: Path) -> None:
    """Weights, EMA, optimizer and every loss are those of the undisturbed run, and so is what was trained on."""
    ended, whole = (open_checkpoint(path / "out" / MODEL) for path in (folder, case.whole))
    assert ended.step == whole.step == NUM_STEPS
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (ended.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    assert [step for step, *_ in losses(folder / "out")] == list(range(1, NUM_STEPS + 1))
    assert losses(folder / "out") == losses(case.whole / "out")
    assert set(trained_on(folder / "record")) == set(trained_on(case.whole / "record"))
    assert not list((folder / "out").rglob("*.partial"))


def stopped(job: dict[str, Any], step: int, number: int = signal.SIGTERM) -> tuple[int, float]:
    """The step at which the job, sent a signal at `step`, was saved; and the seconds from the signal to its end, with 0."""
    begun = time.time()
    process = started(job)
    wait_for_step(process, job, step, begun)
    sent = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=120)[1]
    seconds = time.monotonic() - sent
    assert process.returncode == 0, said[-3000:]
    (line,) = [line for line in said.splitlines() if line.startswith("train: stopped as asked")]
    found = re.fullmatch(r"train: stopped as asked, saved at step (\d+) of 64; the same command goes on from there", line)
    assert found, line
    out = Path(job["job"]["out"])
    assert open_checkpoint(out / "checkpoints" / f"step-{int(found[1]):09d}").step == int(found[1])
    assert not list(out.rglob("*.partial"))
    assert not (out / MANIFEST).exists()
    return int(found[1]), seconds


def assert_elastic(case: Case, folder: Path, sizes: Sequence[tuple[int, int, int]]) -> None:
    """`sizes` is (workers, first step, step after the last): each trained on every slot of these steps once, and nothing else.

    The samples are those of the undisturbed run, the losses within 1e-5.
    """
    found: list[tuple[int, int, str]] = []
    for path in (folder / "record").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            said = json.loads(line)
            assert [said["world"]] == [world for world, first, end in sizes if first <= said["step"] < end], said
            found += [(said["step"], int(slot), digest) for slot, digest in said["slots"].items()]
    assert sorted(found) == sorted(trained_on(case.whole / "record"))
    got, expected = losses(folder / "out"), losses(case.whole / "out")
    assert [step for step, *_ in got] == [step for step, *_ in expected]
    assert max(abs(a[1] - b[1]) for a, b in zip(got, expected, strict=True)) <= 1e-5


def wait_until_still(checkpoints: Path) -> Path:
    """The newest checkpoint, once nobody writes any more: the workers of a killed driver end a moment after it."""
    before: list[str] = []
    for _ in range(60):
        now = sorted(path.name for path in checkpoints.glob("step-*"))
        if now == before:
            return checkpoints / now[-1]
        before = now
        time.sleep(1)
    raise AssertionError("the workers of a killed driver still write after a minute")
