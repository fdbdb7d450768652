"""A sweep on a real local Ray: Tune over real trainings, one trial killed and one stopped early, and what is left on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow
import psutil
import pytest
import ray
from small import SmallRun

from semantica.config import from_dict, override, to_dict
from semantica.data.dataset import MANIFEST, read_manifest
from semantica.distributed.runtime import Runtime
from semantica.distributed.sweep import sweep
from semantica.distributed.train import MODEL
from semantica.errors import DataError
from semantica.jobs.train import main as train_job
from semantica.sweeps.halving import simulated_asha
from semantica.sweeps.plan import SweepPlan, read_plan
from semantica.sweeps.points import Points, TrialMeasurer
from semantica.sweeps.ranking import winner
from semantica.sweeps.results import Result, read_results
from semantica.sweeps.settings import SweepConfig
from semantica.training.checkpoint import open_checkpoint

pytestmark = pytest.mark.ray

CHANGES = {
    "space.patching": [],
    "space.learning_rate": [2e-3, 1e-12],  # the second does not learn
    "space.band": [[-1.0, 1.0], [-0.5, 1.0]],
    "measure.num_points": 3,
    "measure.num": 16,
    "measure.sampler.num_steps": 2,
    "measure.num_shown": 3,
}
# Steps enough between points that ASHA is heard before the next one.
RECIPE = {"num_steps": 120, "checkpoint_every": 10, "optimizer.warmup_steps": 0, "optimizer.cooldown_steps": 0, "ema.decay": 0.5}


@dataclass(frozen=True)
class Swept:
    """A finished sweep, and what was seen of it."""

    out: Path
    plan: SweepPlan
    runtime: Runtime
    results: list[Result]
    killed: list[str]
    inputs_before: dict[str, tuple[int, str]]
    groups: set[str]  # of others, that were there before


def contents(*folders: Path) -> dict[str, tuple[int, str]]:
    """(time of the last change, SHA-256) of every file."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def held_groups() -> set[str]:
    """The placement groups for which the cluster keeps CPUs."""
    return {name for name, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"}


def plan_of(small_run: SmallRun) -> SweepPlan:
    return SweepPlan(
        encodings={"random": str(small_run.out / "encodings")},
        scores={"random": str(small_run.out / "scores")},
        sweep=override(SweepConfig(), CHANGES),
        band=small_run.config.band,
        train=override(small_run.config.train, RECIPE),
    )


def kill_at_first_point(out: Path, killed: list[str]) -> None:
    """Kill the process of the first trial when its first figure is there; its name says what it was."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for lease in out.glob("trials/000-*/.training.lease-*"):
            if list(lease.parent.glob("figures/point-01.json")):
                process = psutil.Process(json.loads(lease.read_text())["pid"])
                killed.append(" ".join(process.cmdline()))
                process.send_signal(signal.SIGKILL)
                return
        time.sleep(0.01)


@pytest.fixture(scope="module")
def swept(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    base = tmp_path_factory.mktemp("sweep")
    plan, out = plan_of(small_run), base / "sweep"
    runtime = override(
        small_run.runtime, {"tracking.uri": f"sqlite:///{base}/mlflow.db", "cluster.max_failures": 2, "cluster.num_workers": 1}
    )
    before = contents(small_run.out / "encodings", small_run.out / "scores")
    groups = held_groups()
    killed: list[str] = []
    killer = threading.Thread(target=kill_at_first_point, args=(out, killed), daemon=True)
    killer.start()
    sweep(plan, out=out, runtime=runtime, max_concurrent=1, command="semantica sweep")
    killer.join(timeout=1)
    return Swept(out, plan, runtime, read_results(out), killed, before, groups)


def test_a_killed_trial_goes_on_and_every_trial_ends(swept: Swept) -> None:
    assert len(swept.killed) == 1
    assert "run_trial" in swept.killed[0] or "ray::" in swept.killed[0]
    assert [result.index for result in swept.results] == [0, 1, 2, 3]
    assert {result.status for result in swept.results} <= {"finished", "stopped"}
    first = swept.results[0]
    assert first.status == "finished"
    assert [figure.step for figure in first.figures] == [40, 80, 120]
    assert open_checkpoint(swept.out / "trials" / first.name / "training" / MODEL).step == 120


def test_asha_stops_what_it_would_stop_in_the_recorded_order(swept: Swept) -> None:
    stopped = {result.name for result in swept.results if result.status == "stopped"}
    assert stopped, [r.figures for r in swept.results]
    curves = {result.name: [figure.frechet for figure in result.figures] for result in swept.results}
    expected = simulated_asha(
        curves, (40, 80, 120), {name: 1.0 for name in curves}, grace_points=1, reduction_factor=swept.plan.sweep.reduction_factor
    )  # fmt: skip
    assert stopped == {name for name, point in expected.reached.items() if point < 3}


def test_trials_that_were_killed_or_stopped_keep_no_cpus(swept: Swept) -> None:
    assert not held_groups() - swept.groups


def test_no_trial_encodes_or_copies_data(swept: Swept, small_run: SmallRun) -> None:
    assert contents(small_run.out / "encodings", small_run.out / "scores") == swept.inputs_before
    views = sorted((swept.out / "selections").iterdir())
    assert len(views) == 2  # one a band, shared by the trials of both learning rates
    for view in views:
        assert {path.name for path in view.iterdir()} == {MANIFEST, "_plan.json"}
        assert read_manifest(view, "selection").files == ()
    trained = {(swept.out / "trials" / r.name / "training" / "_plan.json") for r in swept.results}
    assert {json.loads(path.read_text())["inputs"]["encodings"] for path in trained} == {
        read_manifest(small_run.out / "encodings", "encodings").hash
    }
    assert not list(swept.out.rglob("*.parquet"))


def test_each_figure_is_measured_once_and_is_what_mlflow_shows(swept: Swept) -> None:
    client = mlflow.MlflowClient(swept.runtime.tracking.uri)
    runs = client.search_runs([client.get_experiment_by_name("semantica").experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "sweep"]
    children = {r.info.run_name: r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert set(children) == {result.name for result in swept.results}
    for result in swept.results:
        run = children[result.name]
        assert {name: run.data.params[name] for name in result.settings} == {k: str(v) for k, v in result.settings.items()}
        seen = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "frechet")]
        assert sorted(seen) == [(figure.step, figure.frechet) for figure in result.figures]
        assert run.info.status == ("FINISHED" if result.status == "finished" else "KILLED")
        images = {Path(a.path).name for a in client.list_artifacts(run.info.run_id, "images")}
        assert {f"samples-{figure.step:07d}.png" for figure in result.figures} <= images
        finals = client.get_metric_history(run.info.run_id, "frechet_final")
        assert [m.value for m in finals] == ([result.final] if result.status == "finished" else [])
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} >= {"sweep.html", "sweep.json", "best.yaml"}


def test_the_last_figure_is_that_of_the_model_that_is_kept(swept: Swept, small_run: SmallRun) -> None:
    best = winner(swept.results)
    assert best is not None
    checkpoint = open_checkpoint(swept.out / "trials" / best.name / "training" / MODEL)
    encodings = small_run.out / "encodings"
    points = Points(
        swept.out, (), swept.plan.sweep.measure, swept.out / "held_out.json", swept.out / "references", measured_by=encodings
    )
    measurer = TrialMeasurer(points, checkpoint.config, encodings, tokens_of=None, device="cpu")
    frechet, png = measurer.measure(dict(checkpoint.network(ema=True).named_parameters()))
    assert frechet == pytest.approx(best.final, rel=1e-3)  # of another process: threads sum in another order
    assert png[:4] == b"\x89PNG"
    assert len(measurer.held_out.conditions) == len(set(measurer.held_out.conditions)) == best.figures[0].num_samples


def test_the_winners_file_trains_the_winner_again(swept: Swept, tmp_path: Path) -> None:
    best = winner(swept.results)
    assert best is not None
    words = ["--config", str(swept.out / "best.yaml"), "--out", str(tmp_path / "again"), "--tracking.uri", "off"]
    assert train_job([*words, "--cluster.num-workers", "1", "--cluster.cpus-per-worker", "0.5"]) == 0
    again, first = tmp_path / "again" / MODEL, swept.out / "trials" / best.name / "training" / MODEL
    assert (again / "ema.safetensors").read_bytes() == (first / "ema.safetensors").read_bytes()


def test_a_finished_sweep_is_done_and_its_plan_is_found_by_name(swept: Swept) -> None:
    before = contents(swept.out)
    assert read_plan(swept.out) == swept.plan
    sweep(read_plan(swept.out), out=swept.out, runtime=swept.runtime)
    assert contents(swept.out) == before
    changed = from_dict(SweepPlan, to_dict(swept.plan) | {"band": {"low": 0.1, "high": 0.9, "score": "cosine"}})
    with pytest.raises(DataError, match=r"^sweep: .* was made with another configuration \(band.low: was -1.0, now 0.1;"):
        sweep(changed, out=swept.out, runtime=swept.runtime)
    assert os.getpid() not in [json.loads(path.read_text())["pid"] for path in swept.out.rglob(".*.lease-*")]
