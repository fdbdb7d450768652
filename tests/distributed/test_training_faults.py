"""Workers, nodes and drivers of a training are killed, stopped or asked to end: the weights, EMA, optimizer and losses are those of
the undisturbed run, bit for bit, and every worker trained on what it had to, in the steps it had to.
"""

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

import pytest
from small import draw_pages, random_encoder, small_config

from semantica.config import override, to_dict
from semantica.datasets import MANIFEST
from semantica.denoiser.uvit import UViT
from semantica.distributed.encode import encode
from semantica.distributed.ingest import ingest
from semantica.distributed.pairs import pairs
from semantica.distributed.train import MODEL
from semantica.distributed.training_control import Seen
from semantica.distributed.training_elastic import largest_world
from semantica.distributed.training_guard import culprits
from semantica.distributed.training_history import JOURNAL, Journal, complete_history
from semantica.runtime import Runtime
from semantica.tracking import TrackingConfig
from semantica.training.checkpoint import open_checkpoint
from semantica.training.recipe import TrainConfig

ROOT = Path(__file__).parents[2]
NUM_STEPS = 64
STEP_S = 0.05  # that a step takes longer here, so that it can be hit
QUICK = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
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


@pytest.fixture(scope="module")
def case(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Inputs in six row groups, and the undisturbed run."""
    base = tmp_path_factory.mktemp("training-faults")
    config = override(
        small_config(random_encoder(base / "encoder")),
        {
            "ingest.read.pages_per_part": 2,
            "train.denoiser.stages": [
                {"channels": 16, "num_blocks": 1, "kind": "conv"},
                {"channels": 64, "num_blocks": 1, "kind": "transformer"},
            ],
            "train.num_steps": NUM_STEPS,
            "train.num_lanes": 4,
            "train.optimizer.warmup_steps": 8,
            "train.log_every": 1,
            "train.checkpoint_every": 2,
            "train.keep.last": 3,
        },
    )
    runtime = Runtime(tracking=TrackingConfig(uri="off"))
    root = draw_pages(base / "pictures")
    ingest(config.ingest, root=root, out=base / "episodes", runtime=runtime, pictures=[("drawn", "these tests", "CC0")])
    encode(config.encode, episodes=base / "episodes", out=base / "encodings", runtime=runtime)
    pairs(config.band, encodings=base / "encodings", out=base / "selection", scores=None, runtime=runtime)
    made = Case(base, config.train)
    done = run(made.job(made.whole))
    assert done.returncode == 0, done.stderr[-3000:]
    return made


def run(job: dict[str, Any], timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """The script, to its end."""
    return subprocess.run(_words(job), cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=timeout, check=False)


def _words(job: dict[str, Any]) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("training_chaos.py")), json.dumps(job)]


def _environment() -> dict[str, str]:
    return {**os.environ, **QUICK, "PYTHONPATH": str(ROOT)}


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


def under_fire(case: Case, folder: Path, kill: str, at: Sequence[int], **cluster: object) -> tuple[list[dict[str, Any]], int]:
    """What was killed, and how many groups Ray lost: a training under fire, whose output must equal that of the undisturbed one."""
    job = case.job(folder, **cluster)
    done = run({**job, "kill": kill, "at": list(at)})
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"killed"')))
    assert not said["failed"], said
    assert [strike["step"] for strike in said["killed"]] == list(at)  # all, before the end
    lost = re.search(r"workers were lost (\d+) times", done.stderr)
    assert_same(case, folder)
    assert lost, done.stderr[-3000:]
    return said["killed"], int(lost[1])


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


@pytest.mark.ray
def test_the_undisturbed_run_is_one_of_a_hundred_thousand_parameters_and_trains_on_every_slot_of_every_step_once(
    case: Case,
) -> None:
    assert 9e4 < sum(parameter.numel() for parameter in UViT(case.config.denoiser).parameters()) < 2e5
    seen = sorted((step, slot) for step, slot, _ in trained_on(case.whole / "record"))
    assert seen == [(step, slot) for step in range(NUM_STEPS) for slot in range(case.config.batch_size)]
    assert len(losses(case.whole / "out")) == NUM_STEPS
    assert not (case.whole / "out" / JOURNAL).exists()


@pytest.mark.ray
def test_a_killed_worker_changes_nothing(case: Case, tmp_path: Path) -> None:
    killed, lost = under_fire(case, tmp_path, "worker", [20])
    assert killed[0]["signal"] == signal.SIGKILL
    assert lost == 1


@pytest.mark.ray
def test_a_stopped_worker_is_found_killed_and_changes_nothing(case: Case, tmp_path: Path) -> None:
    killed, lost = under_fire(case, tmp_path, "stop", [20], stall_s=8.0)
    assert killed[0]["signal"] == signal.SIGSTOP
    assert lost == 1  # the stopped one, and not those that waited for it


@pytest.mark.ray
def test_sigterm_saves_and_ends_with_0_and_one_worker_goes_on_with_the_same_samples(case: Case, tmp_path: Path) -> None:
    reached, seconds = stopped(case.job(tmp_path), 20)
    assert 20 < reached < NUM_STEPS
    assert seconds < 30
    sizes = [(2, 0, reached)]
    done = run(case.job(tmp_path, num_workers=1))
    assert done.returncode == 0, done.stderr[-3000:]
    assert_elastic(case, tmp_path, [*sizes, (1, reached, NUM_STEPS)])


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


@pytest.mark.ray
@pytest.mark.slow
def test_one_worker_then_four_then_two_train_on_the_same_samples_in_the_same_steps(case: Case, tmp_path: Path) -> None:
    first, _ = stopped(case.job(tmp_path, num_workers=1), 10)
    second, _ = stopped(case.job(tmp_path, num_workers=4, cpus_per_worker=0.5), 30, signal.SIGINT)
    done = run(case.job(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert_elastic(case, tmp_path, [(1, 0, first), (4, first, second), (2, second, NUM_STEPS)])


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_stopped_twice_ends_as_one_that_was_not(case: Case, tmp_path: Path) -> None:
    job = case.job(tmp_path)
    stopped(job, 8)
    stopped(job, 35)
    done = run(job)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(case, tmp_path)


@pytest.mark.ray
@pytest.mark.slow
def test_twenty_killed_workers_change_nothing(case: Case, tmp_path: Path) -> None:
    killed, lost = under_fire(case, tmp_path, "worker", range(3, 63, 3))
    assert len({strike["process"] for strike in killed}) == 20
    assert lost == 20
    assert {strike["rank"] for strike in killed} == {0, 1}
    assert sum(strike["saving"] for strike in killed) >= 5  # in the middle of a save


@pytest.mark.ray
@pytest.mark.slow
def test_ten_lost_nodes_some_two_at_once_change_nothing(case: Case, tmp_path: Path) -> None:
    killed, lost = under_fire(case, tmp_path, "node", range(6, 62, 7))
    assert [strike["nodes"] for strike in killed] == [1, 1, 1, 2, 1, 1, 1, 2]
    assert lost == 8


@pytest.mark.ray
@pytest.mark.slow
def test_three_stopped_workers_are_found_and_change_nothing(case: Case, tmp_path: Path) -> None:
    _, lost = under_fire(case, tmp_path, "stop", [10, 30, 50], stall_s=8.0)
    assert lost == 3


@pytest.mark.ray
@pytest.mark.slow
def test_five_killed_drivers_and_a_damaged_checkpoint_change_nothing(case: Case, tmp_path: Path) -> None:
    job = case.job(tmp_path)
    for index, step in enumerate([10, 20, 30, 40, 50]):
        begun = time.time()
        process = started(job)
        wait_for_step(process, job, step, begun)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "out" / MANIFEST).exists()
        checkpoints = tmp_path / "out" / "checkpoints"
        if index == 2:
            newest = wait_until_still(checkpoints)
            data = bytearray((newest / "ema.safetensors").read_bytes())
            data[-1] ^= 1
            (newest / "ema.safetensors").write_bytes(data)
        if index == 3:
            (aside,) = checkpoints.glob("damaged-*")  # named and refused; the one before it was used
            assert aside.name.startswith(f"damaged-{newest.name}-")
    done = run(job)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(case, tmp_path)


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


def seen(rank: int, steps: int, silent_s: float, still_s: float) -> Seen:
    return Seen(rank, f"process {rank}", None, steps, silent_s, still_s)


def test_the_stopped_worker_is_killed_and_not_those_that_wait_for_it() -> None:
    waiting, silent = seen(0, 5, 0.4, 11.0), seen(1, 5, 10.8, 11.0)
    assert culprits([waiting, silent], 10.0) == [silent]
    assert culprits([seen(0, 5, 0.4, 9.0), seen(1, 5, 9.0, 9.0)], 10.0) == []
    assert culprits([], 10.0) == []


def test_of_workers_that_all_answer_the_one_with_the_fewest_steps_is_killed() -> None:
    assert culprits([seen(0, 6, 0.1, 11.0), seen(1, 5, 0.1, 11.0)], 10.0) == [seen(1, 5, 0.1, 11.0)]


@pytest.mark.parametrize(("possible", "lanes", "world"), [(3, 4, 2), (5, 12, 4), (100, 64, 64), (63, 64, 32), (1, 7, 1), (0, 4, 0)])
def test_an_elastic_group_is_the_largest_that_divides_the_lanes(possible: int, lanes: int, world: int) -> None:
    assert largest_world(possible, lanes) == world


def test_the_history_is_whole_after_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(json.dumps([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]))
    journal = Journal(tmp_path / JOURNAL)
    journal.add(2, {"loss": 2.0})
    journal.add(3, {"loss": 3.0, "v_loss_logsnr_0": 5.0})
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"step": 4, "lo')
    Journal(tmp_path / JOURNAL).add(4, {"loss": 4.0})
    expected = [{"step": step, "loss": float(step)} for step in (1, 2, 3, 4)]
    assert complete_history(tmp_path) == expected
    assert json.loads((tmp_path / "history.json").read_text()) == expected
