"""The paper's evaluation on a real local Ray: the same figures from any number of workers, after a kill, and in steps."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from evaluation_case import NUM_CLASSES, NUM_PICTURES, ROOT, SETTINGS, Trained, make_trained
from mlflow import MlflowClient

from semantica.config import override, to_dict
from semantica.distributed.evaluate import evaluate
from semantica.distributed.runtime import ClusterConfig, Runtime
from semantica.errors import DataError
from semantica.evaluation.settings import EvaluationConfig
from semantica.tracking import TrackingConfig

pytestmark = pytest.mark.ray


def figures(out: Path) -> dict[str, Any]:
    report = json.loads((out / "report.json").read_text())
    return {figure["name"]: (figure["value"], figure["standard_error"]) for figure in report["figures"]}


def drawn(out: Path) -> dict[str, str]:
    """Sample name -> hash of its pixels as stored; fails when a sample was drawn twice."""
    found: dict[str, str] = {}
    for path in sorted(out.glob("samples/*/*/*.parquet")):
        for row in pq.read_table(path, columns=["sample_id", "bytes"]).to_pylist():
            assert row["sample_id"] not in found
            found[row["sample_id"]] = hashlib.sha256(row["bytes"]).hexdigest()
    return found


@pytest.fixture(scope="module")
def trained(local_ray: None, make: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return make_trained(make, tmp_path_factory.mktemp("trained"))


def run(
    trained: Trained, out: Path, settings: EvaluationConfig = SETTINGS, *, workers: int = 1, fresh: bool = False, **data: str
) -> None:
    cluster = ClusterConfig(num_actors=workers, min_actors=workers, cpus_per_actor=0.5)
    runtime = Runtime(cluster=cluster, tracking=TrackingConfig(uri="off"), fresh=fresh)
    checkpoints = {"model": str(trained.checkpoint)}
    evaluate(settings, checkpoints=checkpoints, data=data or {"colours": str(trained.encodings)}, out=out, runtime=runtime)


@pytest.fixture(scope="module")
def one_worker(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "one"
    run(trained, out)
    return out


def test_every_figure_and_sample_of_the_protocols_is_there(one_worker: Path) -> None:
    asked = [name.split("/")[2:] for name in drawn(one_worker)]  # index, w, seed
    # Without guidance: six samples with each of two seeds, the six of the second set where they are others, the grid's second ones.
    assert asked.count(["0", "0", "1"]) == 6
    assert 6 < asked.count(["0", "0", "0"]) <= 12
    assert asked.count(["1", "0", "0"]) == 2
    assert asked.count(["1", "0.5", "1"]) == NUM_CLASSES  # one-shot: a second copy of each class
    found = figures(one_worker)
    assert {"curve/model/colours/w0/fd-encoder", "curve/model/colours/w0.5/similarity-own"} <= found.keys()
    assert {"one-shot/copy/colours/fd-encoder", "one-shot/model/colours/w0.5/fd-encoder"} <= found.keys()
    value, error = found["curve/model/colours/w0/fd-encoder"]
    assert value > 0
    assert error > 0
    report = json.loads((one_worker / "report.json").read_text())
    stated = next(f["protocol"] for f in report["figures"] if f["name"] == "curve/model/colours/w0.5/fd-encoder")
    for part in (
        "n = 6 against 16",
        "encoder",
        "2 steps",
        "w = 0.5",
        "EMA",
        "seeds 0 to 1",
        "2 sampling seeds",
        "2 conditioning sets",
    ):
        assert part in stated
    assert any("Small n" in line for line in report["summary"])
    assert (one_worker / "report.html").read_text().count("<figure") >= 2


def test_two_workers_give_the_figures_of_one_to_the_last_bit(trained: Trained, one_worker: Path, tmp_path: Path) -> None:
    run(trained, tmp_path / "two", workers=2)
    assert drawn(tmp_path / "two") == drawn(one_worker)
    assert figures(tmp_path / "two") == figures(one_worker)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_figures(trained: Trained, one_worker: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    cluster = {"num_cpus": 2, "object_store_mb": 100, "num_actors": 1, "num_workers": 1}
    runtime = {"cluster": cluster, "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}}
    job = {"checkpoint": [f"model={trained.checkpoint}"], "data": [f"colours={trained.encodings}"], "out": str(out)}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**job, "evaluation": to_dict(SETTINGS), "runtime": runtime}))
    words = [sys.executable, "-m", "jobs.evaluate", "--config", str(tmp_path / "job.yaml")]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (receipts := list(out.glob("samples/*/*/_shards/*.json"))):
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline, "nothing drawn in four minutes"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(out.glob("samples/*/*/manifest.json"))  # in the middle of the drawing
    before = {path: path.stat().st_mtime_ns for path in receipts}

    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was done is not done again
    assert drawn(out) == drawn(one_worker)
    assert figures(out) == figures(one_worker)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("semantica").experiment_id])
    (parent,) = (r for r in runs if r.info.run_name == "evaluate")
    assert parent.data.metrics["curve/model/colours/w0/fd-encoder"] == figures(out)["curve/model/colours/w0/fd-encoder"][0]


def test_asking_for_more_draws_and_measures_only_what_is_missing(trained: Trained, one_worker: Path, tmp_path: Path) -> None:
    few = override(SETTINGS, {"protocol": ["curve"], "num_seeds": 1, "num_condition_sets": 1})
    out = tmp_path / "grown"
    run(trained, out, few)
    first = {path: path.read_bytes() for path in (*out.glob("samples/*/*/*.parquet"), *out.glob("features/*/*/*.parquet"))}
    before = drawn(out)
    run(trained, out)
    assert {path: path.read_bytes() for path in first} == first
    assert before.items() <= drawn(out).items()
    assert drawn(out) == drawn(one_worker)
    assert figures(out) == figures(one_worker)


def test_samples_that_are_drawn_anew_otherwise_are_measured_anew(trained: Trained, tmp_path: Path) -> None:
    few = override(SETTINGS, {"protocol": ["curve"], "num_seeds": 1, "num_condition_sets": 1})
    other = override(few, {"sampler.num_steps": 3})
    run(trained, tmp_path / "both", few)
    before = figures(tmp_path / "both")
    run(trained, tmp_path / "both", other, fresh=True)
    run(trained, tmp_path / "other", other)
    assert figures(tmp_path / "both") == figures(tmp_path / "other") != before


def test_held_out_pictures_of_encodings_and_parquet_are_sets_too(trained: Trained, tmp_path: Path) -> None:
    rows = [{"image": path.read_bytes(), "label": path.parent.name} for path in sorted(trained.root.glob("page-0[01]/*.png"))]
    rows.append({"image": b"no picture", "label": "page-00"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    settings = override(SETTINGS, {"protocol": ["grouping"], "num": 3, "num_seeds": 1, "num_condition_sets": 1})
    run(trained, tmp_path / "out", settings, table=str(tmp_path / "set.parquet"), held=str(trained.encodings))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (sets,) = (table for table in report["tables"] if table["title"] == "Evaluation sets")
    assert sets["rows"][0][:3] + sets["rows"][0][4:5] == ["table", 2 * NUM_PICTURES, 2, 1]
    assert sets["rows"][1][:3] == ["held", NUM_CLASSES * NUM_PICTURES, NUM_CLASSES]
    assert any("table: not used, each with a row in the quarantine: 1 not an image" in line for line in report["summary"])
    of_table = figures(tmp_path / "out")["grouping/model/table/w0.5/fd-encoder"]
    assert of_table != figures(tmp_path / "out")["grouping/model/held/w0.5/fd-encoder"]


def test_a_set_whose_pictures_are_all_broken_or_alone_is_refused(trained: Trained, tmp_path: Path) -> None:
    for name, picture in (("broken", b"nonsense"), ("alone", next(trained.root.rglob("*.png")).read_bytes())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(picture)
    with pytest.raises(DataError, match=r"none of 1 pictures under .*broken can be used: 1 not_an_image"):
        run(trained, tmp_path / "a", broken=str(tmp_path / "broken"))
    with pytest.raises(DataError, match="alone has 1 usable pictures, at least 2 are needed"):
        run(trained, tmp_path / "b", alone=str(tmp_path / "alone"))


def test_a_class_without_a_usable_picture_is_refused_by_one_shot(trained: Trained, tmp_path: Path) -> None:
    for name in ("red", "blue", "void"):
        (tmp_path / "set" / name).mkdir(parents=True)
    for index, path in enumerate(sorted(trained.root.rglob("*.png"))[:12]):
        (tmp_path / "set" / ("red" if index % 2 else "blue") / f"{index}.png").write_bytes(path.read_bytes())
    (tmp_path / "set" / "void" / "a.txt").write_text("no picture")
    settings = override(SETTINGS, {"protocol": ["one-shot"]})
    with pytest.raises(DataError, match="one-shot needs a picture of every class, set has none that can be used of 'void'"):
        run(trained, tmp_path / "out", settings, set=str(tmp_path / "set"))
