"""A sweep by its command, killed and stopped: what comes out is what comes out of one that nothing happened to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import yaml
from small import SmallRun

from semantica.config import override, to_dict
from semantica.sweeps.results import Result, read_results
from semantica.sweeps.settings import SweepConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


def words(small_run: SmallRun, base: Path, out: Path) -> list[str]:
    """The command of a sweep of three trials."""
    changes = {
        "space.patching": [],
        "space.learning_rate": [2e-3, 1e-3, 1e-12],
        "measure.num_points": 4,
        "measure.num": 16,
        "measure.sampler.num_steps": 2,
        "stopping": "none",  # a trial that is stopped may come to its next point before it hears of it
    }
    recipe = {"num_steps": 16, "checkpoint_every": 1, "optimizer.warmup_steps": 0, "optimizer.cooldown_steps": 0, "ema.decay": 0.5}
    cluster = {"num_workers": 1, "num_cpus": 2, "cpus_per_worker": 1.0, "object_store_mb": 100, "max_failures": 2}
    values = {
        "sweep": to_dict(override(SweepConfig(), changes)),
        "band": to_dict(small_run.config.band),
        "train": to_dict(override(small_run.config.train, recipe)),
        "runtime": {"cluster": cluster, "tracking": {"uri": f"sqlite:///{base}/mlflow.db"}},
    }
    (base / "sweep.yaml").write_text(yaml.safe_dump(values))
    places = ["--encodings", str(small_run.out / "encodings"), "--scores", str(small_run.out / "scores")]
    return [*resume(base, out), *places]


def resume(base: Path, out: Path) -> list[str]:
    """The command without what --resume finds."""
    return [sys.executable, "-m", "jobs.sweep", "--config", str(base / "sweep.yaml"), "--out", str(out), "--max-concurrent", "1"]


def started(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(process: subprocess.Popen[str], out: Path, pattern: str) -> None:
    deadline = time.monotonic() + 200
    while not list(out.glob(pattern)):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, f"{pattern} did not come"
        time.sleep(0.02)


def figures(results: list[Result]) -> dict[str, list[tuple[int, float]]]:
    return {result.name: [(figure.step, figure.frechet) for figure in result.figures] for result in results}


def test_a_killed_and_a_stopped_sweep_end_as_one_that_nothing_happened_to(small_run: SmallRun, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    whole = tmp_path / "one" / "sweep"
    undisturbed = started(words(small_run, tmp_path / "one", whole))
    said = undisturbed.communicate(timeout=400)[1]
    assert undisturbed.returncode == 0, said[-3000:]

    out = tmp_path / "two" / "sweep"
    process = started(words(small_run, tmp_path / "two", out))
    wait_for(process, out, "trials/000-*/figures/point-02.json")
    process.kill()
    process.communicate()
    before = {path: path.read_bytes() for path in out.glob("trials/*/figures/*.json")}
    assert not list(out.glob("trials/000-*/training/manifest.json"))  # it was in the middle

    process = started([*resume(tmp_path / "two", out), "--resume"])
    wait_for(process, out, "trials/001-*/figures/point-01.json")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 0, said[-3000:]
    assert "sweep: stopped as asked, " in said
    before |= {path: path.read_bytes() for path in out.glob("trials/*/figures/*.json")}

    process = started([*resume(tmp_path / "two", out), "--resume"])
    said = process.communicate(timeout=400)[1]
    assert process.returncode == 0, said[-3000:]
    assert {path: path.read_bytes() for path in before} == before  # nothing was measured again
    assert figures(read_results(out)) == figures(read_results(whole))
    assert [r.status for r in read_results(out)] == [r.status for r in read_results(whole)]
    assert json.loads((out / "sweep.json").read_text())["best_frechet"] == min(r.final for r in read_results(whole) if r.final)

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/two/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("semantica").experiment_id])
    assert sorted(run.info.run_name for run in runs) == sorted(["sweep", *figures(read_results(out))])
    for result in read_results(out):
        (run,) = [run for run in runs if run.info.run_name == result.name]
        finals = client.get_metric_history(run.info.run_id, "frechet_final")
        assert [metric.value for metric in finals] == ([result.final] if result.status == "finished" else [])


def test_resuming_what_was_not_begun_is_refused_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.sweep", "--out", str(tmp_path / "no"), "--resume"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: --resume: no sweep was begun in {tmp_path}/no; leave --resume out to begin one"
