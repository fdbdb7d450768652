"""MLflow: what a stage records is in the SQLite file beside its output, and nowhere else."""

import os
import pickle

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from semantica.errors import ConfigError
from semantica.tracking import Run, TrackingConfig, git_commit, resolve_uri, start_run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The default tracking URI of an output folder whose path has a space. Making the database takes MLflow seconds: once."""
    folder = tmp_path_factory.mktemp("an output")
    return folder, resolve_uri(TrackingConfig(), folder)


def recorded(uri, run):
    return MlflowClient(tracking_uri=uri).get_run(run.run_id)


def test_params_metrics_images_and_artifacts_are_stored_when_the_block_ends(store, tmp_path, monkeypatch):
    folder, uri = store
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("hello")
    with start_run(uri, "tests", "encode", tags={"colour": "blue"}) as run:
        run.params({"encoder": {"weights": "x", "image_px": 112}, "long": "y" * 600})
        for step in range(200):
            run.metrics({"loss": 1 / (step + 1)}, step=step)
        run.image(b"\x89PNG", "grid")
        run.artifact(tmp_path / "note.txt", "notes")
        run.bytes(b"top", "top.bin")
    found = recorded(uri, run)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"encoder.weights": "x", "encoder.image_px": "112", "long": "y" * 500}
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.run_id, "loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [(s, 1 / (s + 1)) for s in range(200)]
    assert {k: found.data.tags[k] for k in ("semantica.stage", "colour")} == {"semantica.stage": "encode", "colour": "blue"}
    assert found.data.tags["mlflow.source.git.commit"] == git_commit()
    artifacts = folder / "mlartifacts" / run.run_id / "artifacts"
    files = {str(p.relative_to(artifacts)): p.read_bytes() for p in artifacts.rglob("*") if p.is_file()}
    assert files == {"images/grid.png": b"\x89PNG", "notes/note.txt": b"hello", "top.bin": b"top"}
    # Nothing beside the store: no mlflow.db and no mlruns where the command was called.
    assert os.listdir(tmp_path) == ["note.txt"]


def test_a_child_run_names_its_parent_and_shares_its_experiment(store):
    _, uri = store
    with start_run(uri, "tests", "pipeline") as parent, start_run(uri, "tests", "train", parent=parent) as child:
        pass
    assert recorded(uri, child).data.tags["mlflow.parentRunId"] == parent.run_id
    assert "mlflow.parentRunId" not in recorded(uri, parent).data.tags
    assert child.experiment_id == parent.experiment_id


def test_a_block_that_raises_leaves_a_failed_run_with_what_was_logged(store):
    _, uri = store
    opened = []

    def stage():
        with start_run(uri, "tests", "train") as run:
            opened.append(run)
            run.metrics({"loss": 2.0})
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        stage()
    found = recorded(uri, opened[0])
    assert (found.info.status, found.data.metrics) == ("FAILED", {"loss": 2.0})


def test_a_run_travels_to_another_process_as_plain_text(store):
    _, uri = store
    with start_run(uri, "tests", "train") as run:
        arrived = pickle.loads(pickle.dumps(run))  # noqa: S301 - our own bytes, as Ray sends them
        arrived.metrics({"from_worker": 1.0})
        arrived.flush()
        assert recorded(uri, run).data.metrics == {"from_worker": 1.0}
    assert arrived == run


def test_what_cannot_be_stored_is_said_and_does_not_stop_the_stage(store, caplog):
    _, uri = store
    with start_run(uri, "tests", "train") as run:
        run.params({"same": 1})
        run.flush()
        run.params({"same": 2})  # MLflow refuses to change a parameter
    assert recorded(uri, run).info.status == "FINISHED"
    assert f"some figures of run {run.run_id} are not recorded" in caplog.text


def test_off_records_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = resolve_uri(TrackingConfig(uri="off"), tmp_path)
    with start_run(uri, "tests", "train") as run:
        run.params({"a": 1})
        run.metrics({"b": 2.0})
        run.image(b"", "c")
        run.artifact(tmp_path / "not-there")
    assert run == Run()
    assert list(tmp_path.iterdir()) == []


def test_a_child_of_a_run_that_is_off_has_no_parent(store):
    _, uri = store
    with start_run(uri, "tests", "train", parent=Run()) as run:
        pass
    assert "mlflow.parentRunId" not in recorded(uri, run).data.tags


def test_the_default_store_is_in_the_output_folder_whatever_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(TrackingConfig(), tmp_path.__class__("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "file:mlruns", "mlruns", "/tmp/mlruns"])
def test_a_file_store_is_refused_by_the_field(uri, tmp_path):
    with pytest.raises(ConfigError, match=r"tracking\.uri: expected sqlite:///FILE, http\(s\)://SERVER or off"):
        resolve_uri(TrackingConfig(uri=uri), tmp_path)


def test_servers_and_databases_are_taken_as_given(tmp_path):
    for uri in ("http://host:5000", "https://host", "sqlite:////data/mlflow.db"):
        assert resolve_uri(TrackingConfig(uri=uri), tmp_path) == uri


def test_a_run_that_is_not_there_is_an_error(store):
    _, uri = store
    with pytest.raises(MlflowException):
        Run(uri, "0", "f" * 32).artifact(store[0] / "mlflow.db")
