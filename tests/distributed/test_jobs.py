"""The commands as a user runs them: what they print, how they end, and that a killed one goes on where it stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from small import SmallRun

from semantica.config import config_hash, override, to_dict
from semantica.data.dataset import MANIFEST, read_manifest
from semantica.distributed.train import MODEL, train
from semantica.jobs import evaluate
from semantica.training.checkpoint import open_checkpoint
from semantica.training.start import open_inputs

ROOT = Path(__file__).parents[2]


def job(*words: object) -> subprocess.CompletedProcess[str]:
    """`python -m words...` from the project's root."""
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The command failed with one line for the user and no traceback."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in lines[0], lines[0]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nothing"
    assert_one_line(job("jobs.ingest", "--root", missing, "--out", tmp_path / "out"), "ingest", str(missing))
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_one_line(job("jobs.ingest", "--root", tmp_path / "empty", "--out", tmp_path / "out"), "no pictures under")


@pytest.mark.ray
def test_html_pages_without_pictures_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "page.html").write_text("<p>words alone</p>")
    done = job("jobs.ingest", "--preset", "tiny-html", "--root", tmp_path / "site", "--out", tmp_path / "out")
    assert_one_line(done, "ingest", "pictures")
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_an_unknown_preset_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    assert_one_line(job("jobs.train", "--preset", "finale", "--out", tmp_path), "no preset 'finale'", "did you mean 'final'?")


def test_an_unfinished_stage_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "episodes").mkdir()
    done = job("jobs.encode", "--episodes", tmp_path / "episodes", "--out", tmp_path / "out")
    assert_one_line(done, "has no manifest.json", "run semantica ingest again")


def test_an_unknown_field_in_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("encode: {encoder: {image_pixels: 112}}\n")
    done = job("jobs.encode", "--config", tmp_path / "job.yaml", "--episodes", tmp_path, "--out", tmp_path / "out")
    assert_one_line(done, "encode.encoder.image_pixels: unknown field; did you mean 'image_px'?")


def test_an_unknown_flag_ends_with_an_error_code_and_no_traceback(tmp_path: Path) -> None:
    done = job("jobs.encode", "--episodes", tmp_path, "--out", tmp_path, "--enncoder.image-px", "112")
    assert done.returncode == 2
    assert "--enncoder.image-px" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.ray
def test_a_corrupt_checkpoint_is_named(small_run: SmallRun, tmp_path: Path) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(small_run.out / "checkpoint" / MODEL, model)
    damaged = bytearray((model / "ema.safetensors").read_bytes())
    damaged[-1] ^= 1
    (model / "ema.safetensors").write_bytes(damaged)
    done = job("jobs.generate", "--checkpoint", model, "--encodings", small_run.out / "encodings", "--out", tmp_path / "out")
    assert_one_line(done, "ema.safetensors is damaged")


@pytest.mark.ray
def test_a_manifest_of_another_encoder_is_refused(small_run: SmallRun, tmp_path: Path) -> None:
    """The default preset's denoiser is made for another encoder than the one of these encodings."""
    inputs = ("--encodings", small_run.out / "encodings", "--selection", small_run.out / "selection")
    message = "--denoiser.token-dim (train.denoiser.token_dim in YAML) is 384"
    assert_one_line(job("jobs.train", *inputs, "--out", tmp_path / "out"), message, "which has 32")


@pytest.mark.ray
def test_another_configuration_does_not_overwrite_a_finished_stage(small_run: SmallRun) -> None:
    done = job("jobs.pairs", "--encodings", small_run.out / "encodings", "--out", small_run.out / "selection", "--low", "0.25")
    assert_one_line(done, "was made with another configuration (low: was ", "--fresh")


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_training_job_goes_on_and_ends_with_the_same_weights(small_run: SmallRun, tmp_path: Path) -> None:
    config = override(small_run.config.train, {"num_steps": 60, "checkpoint_every": 10})
    inputs = {"encodings": small_run.out / "encodings", "selection": small_run.out / "selection"}
    yaml_path = tmp_path / "train.yaml"
    runtime = {**to_dict(small_run.runtime), "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}}
    runtime["cluster"] |= {"num_cpus": 2, "object_store_mb": 100}
    paths = {name: str(path) for name, path in inputs.items()} | {"out": str(tmp_path / "killed")}
    yaml_path.write_text(yaml.safe_dump({**paths, "train": to_dict(config), "runtime": runtime}))
    words = [sys.executable, "-m", "jobs.train", "--config", str(yaml_path)]

    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("checkpoints/step-*/manifest.json")):
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / MANIFEST).exists()
    assert not (tmp_path / "killed" / MODEL).exists()

    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("semantica").experiment_id])
    assert run.info.status == "FINISHED"
    assert sorted(m.step for m in client.get_metric_history(run.info.run_id, "loss")) == list(range(2, 61, 2))
    manifests = {name: read_manifest(path, name).hash for name, path in inputs.items()}
    assert {name: run.data.tags[f"semantica.inputs.{name}"] for name in manifests} == manifests
    made = read_manifest(tmp_path / "killed", "checkpoint")
    assert run.data.tags["semantica.manifest"] == made.hash
    assert run.data.tags["semantica.config_hash"] == config_hash(made.config)
    assert not list(tmp_path.glob(".*.tracking"))
    train(config, open_inputs(config, **inputs), out=tmp_path / "whole", runtime=small_run.runtime)
    resumed, whole = (open_checkpoint(tmp_path / name / MODEL) for name in ("killed", "whole"))
    assert resumed.step == whole.step == 60
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name


@pytest.mark.ray
def test_samples_that_are_there_are_measured_instead_of_drawn(small_run: SmallRun, tmp_path: Path) -> None:
    words = ["--samples", small_run.out / "samples", "--checkpoint", f"model={small_run.out}"]
    words += ["--data", f"held-out={small_run.out / 'encodings'}", "--out", tmp_path / "evaluation"]
    words += ["--extractor", "encoder", "--perceptual", "--tracking.uri", "off"]
    assert evaluate.main(list(map(str, words))) == 0
    before, after = (json.loads((out / "evaluation" / "report.json").read_text()) for out in (small_run.out, tmp_path))
    assert {f["name"]: f["value"] for f in after["figures"]}.items() <= {f["name"]: f["value"] for f in before["figures"]}.items()
    assert "own_similarity" in after


def test_the_command_of_samples_says_which_command_does_it_now() -> None:
    done = job("jobs.evaluate_samples", "--samples", "x")
    assert done.returncode == 1
    assert "semantica evaluate --samples SAMPLES" in done.stderr
