"""Workers, actors, nodes and drivers die in the middle of ingest, encode and score: the output is that of the undisturbed run.

"The same output" is the same manifest hash: the SHA-256 of every file, so nothing is missing, nothing there twice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from data_chaos import run_stage
from PIL import Image
from small import random_encoder, small_config

from semantica.config import override, to_dict
from semantica.data.dataset import MANIFEST, read_manifest
from semantica.distributed.runtime import Runtime
from semantica.errors import DataError
from semantica.tracking import TrackingConfig

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
FOLDERS = {"ingest": "episodes", "encode": "encodings", "score": "scores"}
INPUTS = {"ingest": "pictures", "encode": "episodes", "score": "encodings"}
NUM_PAGES = 48


@pytest.fixture(scope="module")
def clean(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """An undisturbed run of the three stages, in 24 shards each, slow enough to be hit; and the settings of each stage."""
    base = tmp_path_factory.mktemp("faults")
    generator = np.random.default_rng(0)
    for page in range(NUM_PAGES):
        folder = base / "pictures" / f"page-{page:02d}"
        folder.mkdir(parents=True)
        for index in range(4):
            pixels = generator.integers(0, 256, (200, 200, 3), np.uint8)
            Image.fromarray(pixels).resize((400, 400)).save(folder / f"{index}.png", compress_level=1)
    config = override(
        small_config(random_encoder(base / "encoder", width=192, layers=6, image_px=112)),
        {"ingest.image.image_px": 112, "ingest.read.pages_per_part": 2, "encode.encoder.image_px": 112, "encode.batch_size": 8},
    )
    settings = {"ingest": to_dict(config.ingest), "encode": to_dict(config.encode), "score": {}}
    for stage, folder in FOLDERS.items():
        paths = {"input": str(base / INPUTS[stage]), "out": str(base / folder)}
        run_stage(stage, settings[stage], paths, Runtime(tracking=TrackingConfig(uri="off")))
    return base, settings


def under_fire(clean: tuple[Path, dict[str, dict[str, Any]]], stage: str, kill: str, times: int, out: Path) -> None:
    """Run the stage on a cluster while `times` workers or nodes are killed; the output must equal the undisturbed one."""
    base, settings = clean
    job = {"stage": stage, "kill": kill, "times": times, "settings": settings[stage]}
    job["paths"] = {"input": str(base / INPUTS[stage]), "out": str(out)}
    words = [sys.executable, str(Path(__file__).with_name("data_chaos.py")), json.dumps(job)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"killed"')))  # Ray prints there too
    whole = read_manifest(base / FOLDERS[stage], FOLDERS[stage])
    assert len(said["killed"]) == times, said
    assert all(0 < kill["receipts"] < said["shards"] for kill in said["killed"]), said  # in the middle of the work
    assert said["shards"] == len(list((base / FOLDERS[stage] / "_shards").glob("*.json")))
    assert said["hash"] == whole.hash


def test_a_killed_worker_of_ingest_changes_nothing(clean: Any, tmp_path: Path) -> None:
    under_fire(clean, "ingest", "worker", 1, tmp_path / "out")


@pytest.mark.slow
def test_a_node_lost_during_encode_changes_nothing(clean: Any, tmp_path: Path) -> None:
    under_fire(clean, "encode", "node", 1, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "kill", "times"),
    [
        ("ingest", "worker", 4), ("ingest", "node", 2), ("encode", "worker", 4), ("encode", "node", 2),
        ("score", "worker", 2), ("score", "node", 1),
    ],
)  # fmt: skip
def test_many_kills_change_nothing(clean: Any, tmp_path: Path, stage: str, kill: str, times: int) -> None:
    under_fire(clean, stage, kill, times, tmp_path / "out")


def job_words(clean: tuple[Path, dict[str, dict[str, Any]]], stage: str, folder: Path) -> list[str]:
    """The stage as a command on a Ray of its own."""
    base, settings = clean
    name = "root" if stage == "ingest" else "episodes"
    values = {name: str(base / INPUTS[stage]), "out": str(folder / "out"), stage: settings[stage]}
    values["runtime"] = {"cluster": {"num_cpus": 2, "object_store_mb": 100}, "tracking": {"uri": "off"}}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    return [sys.executable, "-m", f"jobs.{stage}", "--config", str(path)]


def kill_driver(words: list[str], out: Path, receipts: int) -> dict[str, int]:
    """Start the job, SIGKILL it once there are so many receipts; {receipt: time it was written}."""
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("_shards/*.json"))) < receipts:
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline, "too few receipts in two minutes"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / MANIFEST).exists()
    return {path.name: path.stat().st_mtime_ns for path in out.glob("_shards/*.json")}


def driver_killed(clean: tuple[Path, dict[str, dict[str, Any]]], stage: str, folder: Path, kills: list[int]) -> None:
    """Kill the driver at each of these numbers of receipts, then let it finish: the same output, and nothing done again."""
    words = job_words(clean, stage, folder)
    finished: dict[str, int] = {}
    for receipts in kills:
        finished |= kill_driver(words, folder / "out", receipts)
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    now = {path.name: path.stat().st_mtime_ns for path in (folder / "out").glob("_shards/*.json")}
    assert finished.items() <= now.items()  # what was finished was not written again
    assert len(finished) < len(now)
    whole = read_manifest(clean[0] / FOLDERS[stage], FOLDERS[stage])
    assert read_manifest(folder / "out", FOLDERS[stage]).hash == whole.hash


def test_a_killed_driver_of_encode_goes_on_where_it_was(clean: Any, tmp_path: Path) -> None:
    driver_killed(clean, "encode", tmp_path, [3])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ingest", "encode"])
def test_a_driver_killed_three_times_goes_on_where_it_was(clean: Any, tmp_path: Path, stage: str) -> None:
    driver_killed(clean, stage, tmp_path, [2, 8, 14])


def test_two_jobs_that_write_the_same_output_the_second_refuses(clean: Any, tmp_path: Path) -> None:
    base, settings = clean
    words = job_words(clean, "encode", tmp_path)
    first = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "_plan.json").exists():
        assert time.monotonic() < deadline, "the first job did not begin"
        time.sleep(0.01)
    paths = {"input": str(base / "episodes"), "out": str(tmp_path / "out")}
    with pytest.raises(DataError, match=f"is being written by process {first.pid} on "):
        run_stage("encode", settings["encode"], paths, Runtime(tracking=TrackingConfig(uri="off")))
    assert first.wait(timeout=300) == 0
    assert read_manifest(tmp_path / "out", "encodings").hash == read_manifest(base / "encodings", "encodings").hash
