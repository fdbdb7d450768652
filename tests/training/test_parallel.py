"""DDP, FSDP2 and HSDP are one step with the same numbers, and their checkpoints are interchangeable: gloo groups of 2 and 4."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from semantica.config import to_dict
from semantica.denoiser import configs
from semantica.errors import ConfigError
from semantica.training.checkpoint import open_checkpoint
from semantica.training.parallel import sharing, state_bytes
from semantica.training.recipe import ComputeConfig, OptimizerConfig

KINDS = ("model", "ema", "optimizer")
FSDP, HSDP = ComputeConfig(parallel="fsdp"), ComputeConfig(parallel="hsdp", shard_workers=2)
RATE, CLIP, DAMAGED = 3e-3, 0.05, 3  # every norm is above the second; the step counts from 0

# name: (workers, compute, the checkpoint it goes on from, what else is not as in the others)
RUNS = {
    "one": (1, ComputeConfig(), None, {}),
    "ddp-2": (2, ComputeConfig(), None, {}),
    "fsdp-2": (2, FSDP, None, {}),
    "fsdp-4": (4, FSDP, None, {}),
    "hsdp-2x2": (4, HSDP, None, {}),
    "fsdp-2-recomputed": (2, ComputeConfig(parallel="fsdp", recompute="all"), None, {}),
    "one-bfloat16": (1, ComputeConfig(precision="bfloat16"), None, {}),
    "fsdp-2-bfloat16": (2, ComputeConfig(parallel="fsdp", precision="bfloat16"), None, {}),
    # without dropout, of which a compiled graph draws other masks
    "one-plain": (1, ComputeConfig(), None, {"dropout": 0.0, "together": 2}),
    "fsdp-2-compiled": (2, ComputeConfig(parallel="fsdp", compile=True, recompute="all"), None, {"dropout": 0.0, "together": 2}),
    # saved by one kind, loaded and saved again by the next
    "a-fsdp-4": (4, FSDP, "ddp-2/2", {"resave": True}),
    "b-hsdp-2x2": (4, HSDP, "a-fsdp-4/2", {"resave": True}),
    "c-one": (1, ComputeConfig(), "b-hsdp-2x2/2", {"resave": True}),
    # going on
    "fsdp-2-again": (2, FSDP, "fsdp-2/2", {}),
    "fsdp-4-of-ddp-2": (4, FSDP, "ddp-2/2", {}),
    "one-of-fsdp-4-of-ddp-2": (1, ComputeConfig(), "fsdp-4-of-ddp-2/4", {}),
}


def folder_of(folder, checkpoint):
    name, step = checkpoint.split("/")
    return folder / name / "checkpoints" / f"step-{int(step):09d}"


def test_workers_that_follow_each_other_share_a_copy():
    def of(compute, world):
        return [(s.rank, s.world, s.replica) for s in (sharing(compute, rank, world) for rank in range(world))]

    assert of(ComputeConfig(), 3) == [(0, 1, 0), (0, 1, 1), (0, 1, 2)]
    assert of(FSDP, 3) == [(0, 3, 0), (1, 3, 0), (2, 3, 0)]
    assert of(HSDP, 4) == [(0, 2, 0), (1, 2, 0), (0, 2, 1), (1, 2, 1)]
    assert of(HSDP, 2) == of(FSDP, 2)


def test_a_number_of_workers_that_are_no_whole_copies_is_refused_in_one_line():
    for world in (1, 3, 5):
        with pytest.raises(
            ConfigError, match=rf"^train\.compute\.shard_workers must divide cluster\.num_workers = {world}, got 2; "
        ) as error:
            HSDP.check_workers(world)
        assert "\n" not in str(error.value)
    HSDP.check_workers(6)
    FSDP.check_workers(5)


def test_the_table_of_memory_is_the_one_that_is_computed():
    text = (Path(__file__).parents[2] / "docs" / "reference" / "training.md").read_text()
    ways = {"ddp": ("any", 8, ComputeConfig()), "fsdp": ("8", 8, FSDP), "fsdp, 64": ("64", 64, FSDP)}
    ways["hsdp"] = ("64, 8 per copy", 64, ComputeConfig(parallel="hsdp", shard_workers=8))
    for name, denoiser in (("base", configs.base()), ("final", configs.final())):
        for kind, (workers, world, compute) in ways.items():
            made = state_bytes(denoiser, compute, world)
            figures = (made.weights, made.gradients, made.moments, made.ema, made.gathered, made.total)
            row = [name, kind.partition(",")[0], workers, *(f"{figure / 1e9:.2f}" for figure in figures)]
            assert f"| {' | '.join(row)} |" in text


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """The folder in which every run has left its checkpoints and what its workers found."""
    folder = tmp_path_factory.mktemp("parallel")
    job = {"folder": str(folder), "encodings": str(tiny.folder / "encodings"), "selection": str(tiny.folder / "selection")}
    job["runs"] = []
    for name, (world, compute, start, odd) in RUNS.items():
        stages = tuple(replace(stage, dropout=odd.get("dropout", 0.2)) for stage in tiny.config().denoiser.stages)
        config = tiny.config(
            compute=compute,
            denoiser=replace(tiny.config().denoiser, stages=stages),
            micro_batch_size=odd.get("together", 1),  # 1: any number of workers draws the same dropout
            log_every=1,
            checkpoint_every=2,
            # Of some weights (queries of tokens that are all alike) the gradients are 0 but for rounding. With the paper's eps of
            # 1e-12 Adam makes whole steps of those.
            optimizer=OptimizerConfig(learning_rate=RATE, warmup_steps=3, max_grad_norm=CLIP, eps=1e-8),
        )
        start = str(folder_of(folder, start)) if start else None
        run = {"name": name, "world": world, "config": to_dict(config), "start": start, "resave": odd.get("resave", False)}
        job["runs"].append({**run, "damaged_step": DAMAGED})
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, str(Path(__file__).with_name("workers.py")), str(folder / "job.json")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def found(runs, name, rank=0):
    return json.loads((runs / name / f"{rank}.json").read_text())


def tensors(runs, checkpoint, kind):
    return open_checkpoint(folder_of(runs, checkpoint)).tensors(kind)


def furthest(runs, a, b, kind):
    """The largest difference of two runs' tensors at the end."""
    first, second = tensors(runs, f"{a}/6", kind), tensors(runs, f"{b}/6", kind)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def assert_same_numbers(runs, a, b, weights, figures):
    """Weights and average within `weights` of each other, loss and gradient norm of every step within a share of `figures`."""
    assert furthest(runs, a, b, "model") < weights
    assert furthest(runs, a, b, "ema") < weights
    first, second = found(runs, a)["reports"], found(runs, b)["reports"]
    first = first[-len(second) :]  # a run that goes on reports the later steps only
    for (loss, norm, skipped), (other_loss, other_norm, other_skipped) in zip(first, second, strict=True):
        assert skipped == other_skipped
        assert loss == pytest.approx(other_loss, rel=figures, nan_ok=True)
        assert norm == pytest.approx(other_norm, rel=figures, nan_ok=True)


# Sums over workers and over rows are added up in another order, so figures differ by float32's rounding, 6e-8 of a number, and by
# that of a few such sums. Six steps move a weight by up to 9e-3, of which 2e-6 is 1 in 4,500. Seen: 5e-7, and 2.3e-7 of a norm.
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("one", "ddp-2"),
        ("one", "fsdp-2"),
        ("ddp-2", "fsdp-2"),
        ("one", "fsdp-4"),
        ("one", "hsdp-2x2"),
        ("one-plain", "fsdp-2-compiled"),
        ("one", "fsdp-4-of-ddp-2"),
        ("one", "one-of-fsdp-4-of-ddp-2"),
    ],
)
def test_every_kind_and_number_of_workers_trains_the_same_network(runs, a, b):
    assert_same_numbers(runs, a, b, weights=2e-6, figures=1e-6)


def test_in_bfloat16_sharded_weights_are_rounded_where_whole_ones_are(runs):
    # A number that differs by float32's rounding may fall to the other side of a bfloat16, 4e-3 of it away. Seen: none did.
    assert_same_numbers(runs, "one-bfloat16", "fsdp-2-bfloat16", weights=1e-5, figures=1e-4)
    assert furthest(runs, "ddp-2", "fsdp-2-bfloat16", "model") > 1e-3  # that it is bfloat16


def test_the_runs_were_clipped_moved_every_weight_and_skipped_the_damaged_step_alone(runs):
    for name in ("one", "ddp-2", "fsdp-2", "fsdp-4", "hsdp-2x2"):
        reports = found(runs, name)["reports"]
        assert [skipped for _, _, skipped in reports] == [int(step == DAMAGED) for step in range(6)]
        assert all(norm > CLIP or math.isnan(norm) for _, norm, _ in reports)
        early, late = tensors(runs, f"{name}/2", "model"), tensors(runs, f"{name}/6", "model")
        moved = [float((late[n] - early[n]).abs().max()) for n in early]
        assert sum(distance > RATE for distance in moved) > 0.8 * len(moved)
        assert furthest(runs, name, name, "model") == 0


def test_a_step_that_is_skipped_leaves_every_workers_rows_as_they_are(runs):
    # The average goes on towards weights that stay: from step 2 to 4 it is the only thing that moved twice.
    opened = open_checkpoint(folder_of(runs, "fsdp-4/4"))
    assert (opened.num_ema_updates, opened.num_optimizer_updates) == (4, 4)
    second, fourth = tensors(runs, "fsdp-4/2", "optimizer"), tensors(runs, "fsdp-4/4", "optimizer")
    decayed = {n: float((fourth[n] / second[n]).min()) for n in second if n.startswith("exp_avg_sq/") and second[n].min() > 0}
    assert decayed
    # One update only decays a second moment by 0.99 at most; two would by 0.9801.
    assert min(decayed.values()) >= 0.99 * (1 - 1e-6)


def test_what_one_kind_saved_every_other_loads_and_saves_bit_for_bit(runs):
    for kind in KINDS:
        expected = tensors(runs, "ddp-2/2", kind)
        for name in ("a-fsdp-4", "b-hsdp-2x2", "c-one"):
            got = tensors(runs, f"{name}/2", kind)
            assert got.keys() == expected.keys()
            assert all(torch.equal(got[n], t) for n, t in expected.items()), (name, kind)
        files = [folder_of(runs, f"{name}/2") / f"{kind}.safetensors" for name in ("ddp-2", "c-one")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_activation_checkpointing_of_sharded_weights_trains_the_same_network_bit_for_bit(runs):
    """Dropout in every block: the second pass draws the masks of the first."""
    for kind in KINDS:
        assert furthest(runs, "fsdp-2", "fsdp-2-recomputed", kind) == 0


def test_interrupted_and_resumed_with_sharded_weights_is_uninterrupted_bit_for_bit(runs):
    assert open_checkpoint(folder_of(runs, "fsdp-2-again/6")).hash == open_checkpoint(folder_of(runs, "fsdp-2/6")).hash


@pytest.mark.parametrize(("name", "writers"), [("ddp-2", 1), ("fsdp-2", 2), ("fsdp-4", 4), ("hsdp-2x2", 2)])
def test_every_worker_that_shares_the_first_copy_writes_its_rows_and_no_other_writes(runs, name, writers):
    parts = [f"-{rank + 1:05d}-of-{writers:05d}" for rank in range(writers)] if writers > 1 else [""]
    expected = {f"{kind}{part}.safetensors" for kind in KINDS for part in parts} | {"config.json", "manifest.json"}
    folder = folder_of(runs, f"{name}/6")
    assert {p.name for p in folder.iterdir()} == expected
    sizes = [(folder / f"optimizer{part}.safetensors").stat().st_size for part in parts]
    assert max(sizes) < 1.3 * sum(sizes) / writers
    assert not any(found(runs, name, rank)["failures"] for rank in range(RUNS[name][0]))


def test_a_worker_holds_its_rows_of_weights_average_and_moments(runs):
    numbers = sum(t.numel() for t in tensors(runs, "one/6", "model").values())
    for name, together in (("one", 1), ("ddp-2", 1), ("fsdp-2", 2), ("fsdp-4", 4), ("hsdp-2x2", 2), ("fsdp-2-again", 2)):
        world, compute, *_ = RUNS[name]
        held = [found(runs, name, rank)["held"] for rank in range(world)]
        config = open_checkpoint(folder_of(runs, f"{name}/6")).config
        most = state_bytes(config.denoiser, compute, world)
        assert (held[0]["model"], held[0]["ema"], held[0]["optimizer"]) == (most.weights // 4, most.ema // 4, most.moments // 4)
        for kind, times in (("model", 1), ("ema", 1), ("optimizer", 2)):
            assert sum(h[kind] for h in held) == numbers * times * (world // together)
            assert max(h[kind] for h in held) == held[0][kind]


def test_the_whole_weights_are_gathered_for_the_worker_that_asks(runs):
    for name in ("one", "ddp-2", "fsdp-2", "hsdp-2x2"):
        gathered, stored = load_file(runs / name / "whole-6.safetensors"), tensors(runs, f"{name}/6", "model")
        assert gathered.keys() == stored.keys()
        assert all(torch.equal(gathered[n], t) for n, t in stored.items())
        assert [found(runs, name, rank)["gathered"] for rank in range(1, RUNS[name][0])] == [0] * (RUNS[name][0] - 1)


def test_every_kind_of_block_is_one_graph_that_is_compiled_once(runs):
    graphs = found(runs, "fsdp-2-compiled")["graphs"]  # after 2, 4 and 6 steps of two micro-batches, each block run twice
    assert graphs[0] == graphs[-1]
    assert 2 <= graphs[0] <= 3  # there are three blocks, of two kinds
    assert found(runs, "fsdp-2")["graphs"] == [0, 0, 0]
