"""The code of this tree gives what the code of f049af4 gave, to the bit, and opens what it left.

    SEMANTICA_GUARDS=/tmp/guards python -m pytest tests/guards -k losses     # or samples, data, training, report, old, release

The folder is made by `record.py`, which says how. Differences that are meant are listed at the end of `today.py`.
"""

# ruff: noqa: E402 - the environment is set before torch is imported

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent
_GUARDS = os.environ.get("SEMANTICA_GUARDS", "")
if not _GUARDS:
    pytest.skip(f"set SEMANTICA_GUARDS to a folder made by {_HERE / 'record.py'}, which says how", allow_module_level=True)
sys.path.insert(0, str(_HERE))
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONPATH"] = str(_HERE.parents[1])  # of Ray's workers
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")

import today
import torch
from guard_cases import (
    DATA_STAGES,
    LOADS,
    SAMPLES,
    STAGES,
    TRAININGS,
    Sample,
    Training,
    comparable,
    files_of,
    first_differences,
    hash_of,
    history_of,
    manifest_of,
    times_of,
    weights_of,
)

import semantica

GUARDS = Path(_GUARDS)
BY_NAME = {training.name: training for training in TRAININGS}


@pytest.fixture(scope="module")
def then() -> dict[str, Any]:
    """The figures of f049af4."""
    figures: dict[str, Any] = json.loads((GUARDS / "figures.json").read_text())
    assert figures["torch"] == torch.__version__, "recorded with another torch: record again"
    assert Path(semantica.__file__).is_relative_to(_HERE.parents[1]), f"PYTHONPATH is missing: {semantica.__file__}"
    return figures


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """A Ray of two CPUs that all stages share."""
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(address="local", num_cpus=2, object_store_memory=128 * 2**20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the old run of every stage, with the times of its files."""
    shutil.copytree(GUARDS / "run", tmp_path / "run")
    return tmp_path / "run"


def assert_same(old: Any, new: Any) -> None:
    """Equal, or the first differences, one a line."""
    assert not (found := first_differences(old, new)), "\n".join(found)


def assert_same_manifest(stage: str, old: dict[str, Any], folder: Path) -> None:
    new = manifest_of(folder)
    assert_same(today.expected_config(stage, old["config"]), new["config"])
    assert_same([old["kind"], old["counts"], old["facts"]], [new["kind"], new["counts"], new["facts"]])
    has_other_config = stage in today.CHANGED_HASHES
    if stage == "checkpoint" and has_other_config:  # its config.json holds settings
        assert [file["path"] for file in files_of(old)] == [file["path"] for file in files_of(new)]
        assert_same(weights_of(GUARDS / "run" / "checkpoint" / "model"), weights_of(folder / "model"))
    elif stage not in today.CHANGED_FILES:
        assert_same(files_of(old), files_of(new))
    if stage not in today.CHANGED_HASHES:
        assert old["inputs"] == new["inputs"]
        holds_time = stage in ("checkpoint", "evaluation")  # in the history and in the report
        assert holds_time or has_other_config or hash_of(old) == hash_of(new)


# --- Losses ---


def remove_from(stage: str, run: Path) -> None:
    """Remove what the stage made and what was made of that: the manifests of today hold fields that those of then have not."""
    for name in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(run / name)


@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.name)
def test_losses_and_weights_of_a_training_in_one_process(training: Training, then: dict[str, Any], tmp_path: Path) -> None:
    assert_same(then["trainings"][training.name], today.train_losses(GUARDS, training, tmp_path).to_dict())


@pytest.mark.parametrize("name", ["signals", "x", "bfloat16"])
def test_losses_of_an_old_checkpoint_that_is_trained_on(name: str, then: dict[str, Any], tmp_path: Path) -> None:
    training = BY_NAME[name]
    middle = training.checkpoint_every
    got = today.train_losses(GUARDS, training, tmp_path, start=GUARDS / "trainings" / name / str(middle))
    old = then["trainings"][name]
    assert_same([old["losses"][middle:], old["norms"][middle:], old["weights"]], [got.losses, got.norms, got.weights])


@pytest.mark.ray
def test_training_by_one_worker_of_ray(one_ray: None, then: dict[str, Any], tmp_path: Path) -> None:
    assert_same(then["one-worker"], today.train_by_one_worker(GUARDS, tmp_path / "out").to_dict())


@pytest.mark.ray
def test_training_by_two_workers_of_ray(one_ray: None, then: dict[str, Any], run: Path) -> None:
    remove_from("checkpoint", run)
    today.run_pipeline(GUARDS, run)
    losses, norms = history_of(run / "checkpoint")
    weights = weights_of(run / "checkpoint" / "model")
    assert_same(then["two-workers"], {"losses": losses, "norms": norms, "weights": weights})
    assert_same_manifest("checkpoint", then["manifests"]["checkpoint"], run / "checkpoint")


# --- Samples ---


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_samples_of_every_sampler(sample: Sample, then: dict[str, Any]) -> None:
    assert_same(then["samples"][sample.name], today.draw_sample(GUARDS, sample))


@pytest.mark.parametrize("max_rows", [2, 4, 64])
def test_samples_whose_noise_is_keyed_by_name(max_rows: int, then: dict[str, Any]) -> None:
    assert_same(then["chunks"][str(max_rows)], today.draw_chunks(GUARDS, max_rows))


@pytest.mark.ray
def test_stage_samples(one_ray: None, then: dict[str, Any], run: Path) -> None:
    remove_from("samples", run)
    today.run_pipeline(GUARDS, run)
    assert_same_manifest("samples", then["manifests"]["samples"], run / "samples")


# --- Data ---


@pytest.fixture(scope="module")
def data(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    today.run_data(GUARDS, folder)
    return folder


@pytest.mark.ray
@pytest.mark.parametrize("stage", DATA_STAGES)
def test_data_of_a_stage(stage: str, then: dict[str, Any], data: Path) -> None:
    assert_same_manifest(stage, then["manifests"][stage], data / stage)


@pytest.mark.ray
def test_data_of_html_pages(one_ray: None, then: dict[str, Any], tmp_path: Path) -> None:
    today.ingest_html(GUARDS, tmp_path / "html")
    assert_same_manifest("html", then["manifests"]["html"], tmp_path / "html")


# --- Reports ---


@pytest.mark.ray
def test_report_of_the_pipeline(one_ray: None, then: dict[str, Any], run: Path) -> None:
    shutil.rmtree(run / "evaluation")
    today.run_pipeline(GUARDS, run)
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert_same(today.expected_report("run", then["reports"]["run"]), comparable(report))
    assert_same_manifest("evaluation", then["manifests"]["evaluation"], run / "evaluation")


@pytest.mark.ray
def test_report_of_the_protocols(one_ray: None, then: dict[str, Any], tmp_path: Path) -> None:
    today.evaluate_protocols(GUARDS, tmp_path / "protocols")
    report = json.loads((tmp_path / "protocols" / "report.json").read_text())
    assert_same(today.expected_report("protocols", then["reports"]["protocols"]), comparable(report))


# --- Old outputs ---


@pytest.mark.ray
def test_old_outputs_count_as_done(one_ray: None, run: Path) -> None:
    before = times_of(run)
    assert all(f"{stage}/manifest.json" in before for stage in STAGES)
    today.run_pipeline(GUARDS, run)
    assert_same(before, times_of(run))


@pytest.mark.ray
def test_old_samples_and_features_of_the_protocols_are_not_made_again(one_ray: None, then: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "protocols"
    shutil.copytree(GUARDS / "protocols", out)
    before = {name: time for name, time in times_of(out).items() if name.endswith(".parquet")}
    assert before
    today.evaluate_protocols(GUARDS, out)
    assert_same(before, {name: time for name, time in times_of(out).items() if name.endswith(".parquet")})
    report = json.loads((out / "report.json").read_text())
    assert_same(today.expected_report("protocols", then["reports"]["protocols"]), comparable(report))


@pytest.mark.ray
def test_old_training_that_was_interrupted_goes_on(one_ray: None, then: dict[str, Any], run: Path) -> None:
    out = run / "checkpoint"
    remove_from("samples", run)
    (out / "manifest.json").unlink()
    shutil.rmtree(out / "model")
    shutil.rmtree(out / "checkpoints" / "step-000000050")
    history = json.loads((out / "history.json").read_text())
    (out / "history.json").write_text(json.dumps(history[:25]))
    before = times_of(out / "checkpoints" / "step-000000025")
    today.run_pipeline(GUARDS, run)
    losses, norms = history_of(out)
    assert_same(then["two-workers"], {"losses": losses, "norms": norms, "weights": weights_of(out / "model")})
    assert_same(before, times_of(out / "checkpoints" / "step-000000025"))  # it was not trained from the start


# --- Releases ---


@pytest.mark.parametrize("name", LOADS)
def test_release_or_checkpoint_of_then_draws_the_same(name: str, then: dict[str, Any]) -> None:
    assert_same(then["loaded"][name], today.draw_loaded(GUARDS, name))


def test_release_made_today_is_that_of_then(tmp_path: Path) -> None:
    today.release_model(GUARDS, tmp_path / "release")
    old, new = (json.loads((folder / "release" / "config.json").read_text()) for folder in (GUARDS, tmp_path))
    assert_same(today.expected_config("release", old), new)
    weights = [(folder / "release" / "model.safetensors").read_bytes() for folder in (GUARDS, tmp_path)]
    assert weights[0] == weights[1]
