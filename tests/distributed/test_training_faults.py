"""Workers, nodes and drivers of a training are killed, stopped or asked to end: the weights, EMA, optimizer and losses are those of
the undisturbed run, bit for bit, and every worker trained on what it had to, in the steps it had to.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from small import draw_pages, random_encoder, small_config
from training_case import (
    NUM_STEPS,
    Case,
    assert_elastic,
    assert_same,
    losses,
    run,
    started,
    stopped,
    trained_on,
    under_fire,
    wait_for_step,
    wait_until_still,
)

from semantica.config import override
from semantica.data.dataset import MANIFEST
from semantica.denoiser.uvit import UViT
from semantica.distributed.encode import encode
from semantica.distributed.ingest import ingest
from semantica.distributed.pairs import pairs
from semantica.distributed.reports import JOURNAL
from semantica.distributed.runtime import Runtime
from semantica.tracking import TrackingConfig

pytestmark = pytest.mark.ray


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


def test_the_undisturbed_run_is_one_of_a_hundred_thousand_parameters_and_trains_on_every_slot_of_every_step_once(
    case: Case,
) -> None:
    assert 9e4 < sum(parameter.numel() for parameter in UViT(case.config.denoiser).parameters()) < 2e5
    seen = sorted((step, slot) for step, slot, _ in trained_on(case.whole / "record"))
    assert seen == [(step, slot) for step in range(NUM_STEPS) for slot in range(case.config.batch_size)]
    assert len(losses(case.whole / "out")) == NUM_STEPS
    assert not (case.whole / "out" / JOURNAL).exists()


def test_a_killed_worker_and_a_stopped_one_which_is_found_change_nothing(case: Case, tmp_path: Path) -> None:
    killed, lost = under_fire(case.job(tmp_path, stall_s=8.0), ["worker", "stop"], [20, 40])
    assert [strike["signal"] for strike in killed] == [signal.SIGKILL, signal.SIGSTOP]
    assert lost == 2  # the stopped worker's group once, and nothing for those that waited for it
    assert_same(case, tmp_path)


def test_sigterm_saves_and_ends_with_0_and_one_worker_goes_on_with_the_same_samples(case: Case, tmp_path: Path) -> None:
    reached, seconds = stopped(case.job(tmp_path), 20)
    assert 20 < reached < NUM_STEPS
    assert seconds < 30
    sizes = [(2, 0, reached)]
    done = run(case.job(tmp_path, num_workers=1))
    assert done.returncode == 0, done.stderr[-3000:]
    assert_elastic(case, tmp_path, [*sizes, (1, reached, NUM_STEPS)])


@pytest.mark.slow
def test_one_worker_then_four_then_two_train_on_the_same_samples_in_the_same_steps(case: Case, tmp_path: Path) -> None:
    first, _ = stopped(case.job(tmp_path, num_workers=1), 10)
    second, _ = stopped(case.job(tmp_path, num_workers=4, cpus_per_worker=0.5), 30, signal.SIGINT)
    done = run(case.job(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert_elastic(case, tmp_path, [(1, 0, first), (4, first, second), (2, second, NUM_STEPS)])


@pytest.mark.slow
def test_a_training_stopped_twice_ends_as_one_that_was_not(case: Case, tmp_path: Path) -> None:
    job = case.job(tmp_path)
    stopped(job, 8)
    stopped(job, 35)
    done = run(job)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(case, tmp_path)


@pytest.mark.slow
def test_a_second_signal_ends_a_training_at_once(case: Case, tmp_path: Path) -> None:
    job = {**case.job(tmp_path), "step_s": 3.0}
    begun = time.time()
    process = started(job)
    wait_for_step(process, job, 1, begun)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "interrupted; the same command resumes where it stopped" in said
    assert time.monotonic() - sent < 10


@pytest.mark.slow
def test_twenty_killed_workers_change_nothing(case: Case, tmp_path: Path) -> None:
    killed, lost = under_fire(case.job(tmp_path), ["worker"] * 20, range(3, 63, 3))
    assert len({strike["process"] for strike in killed}) == 20
    assert lost == 20
    assert {strike["rank"] for strike in killed} == {0, 1}
    assert sum(strike["saving"] for strike in killed) >= 5  # in the middle of a save
    assert_same(case, tmp_path)


@pytest.mark.slow
def test_ten_lost_nodes_some_two_at_once_change_nothing(case: Case, tmp_path: Path) -> None:
    kills = ["node", "node", "node", "nodes", "node", "node", "node", "nodes"]
    killed, lost = under_fire(case.job(tmp_path), kills, range(6, 62, 7))
    assert [strike["nodes"] for strike in killed] == [1, 1, 1, 2, 1, 1, 1, 2]
    assert lost == 8
    assert_same(case, tmp_path)


@pytest.mark.slow
def test_three_stopped_workers_are_found_and_change_nothing(case: Case, tmp_path: Path) -> None:
    _, lost = under_fire(case.job(tmp_path, stall_s=8.0), ["stop"] * 3, [10, 30, 50])
    assert lost == 3
    assert_same(case, tmp_path)


@pytest.mark.slow
def test_a_node_that_is_told_it_will_go_is_saved_first_and_nothing_is_made_twice_from_the_start(case: Case, tmp_path: Path) -> None:
    config = override(case.config, {"checkpoint_every": NUM_STEPS})  # nothing is saved but what the notice asks for
    job = {**case.job(tmp_path, config), "step_s": 0.3}
    killed, lost = under_fire(job, ["drain"], [20])
    assert killed[0]["accepted"], killed
    assert lost == 0  # Ray ended the group when the node's time was over
    firsts = sorted(json.loads(path.read_text().splitlines()[0])["step"] for path in (tmp_path / "record").glob("*.jsonl"))
    assert firsts[:2] == [0, 0]
    assert firsts[2] == firsts[3] >= 20  # the second group went on from the save
    assert_same(case, tmp_path)


@pytest.mark.slow
def test_an_elastic_group_shrinks_when_a_node_goes_and_grows_when_one_comes(case: Case, tmp_path: Path) -> None:
    job = {**case.job(tmp_path, min_workers=1, resize_every_s=3.0), "step_s": 0.4}
    _, lost = under_fire(job, ["shrink"], [15])
    assert lost == 1  # growing loses nothing
    worlds: dict[int, list[int]] = {}
    for path in (tmp_path / "record").glob("*.jsonl"):
        said = [json.loads(line) for line in path.read_text().splitlines()]
        worlds.setdefault(said[0]["world"], []).append(said[0]["step"])
    assert sorted(worlds) == [1, 2]
    assert len(worlds[2]) == 4  # before and after
    assert set(trained_on(tmp_path / "record")) == set(trained_on(case.whole / "record"))
    assert max(abs(a[1] - b[1]) for a, b in zip(losses(tmp_path / "out"), losses(case.whole / "out"), strict=True)) <= 1e-5


@pytest.mark.slow
def test_five_killed_drivers_and_a_damaged_checkpoint_change_nothing(case: Case, tmp_path: Path) -> None:
    job = case.job(tmp_path)
    for index, step in enumerate([10, 20, 30, 40, 50]):
        begun = time.time()
        process = started(job)
        wait_for_step(process, job, step, begun)
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
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
