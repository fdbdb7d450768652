"""MLflow: what a stage records is in the SQLite file beside its output, and nowhere else."""

import os
import pickle
import time

import pytest
from mlflow import MlflowClient

from semantica.errors import ConfigError
from semantica.tracking import Place, Run, TrackingConfig, git_commit, resolve_uri, send_what_is_left, start_run
from semantica.tracking.spool import Spec, Writer


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The default tracking URI of an output folder whose path has a space. Making the database takes MLflow seconds: once."""
    folder = tmp_path_factory.mktemp("an output")
    return folder, resolve_uri(TrackingConfig(), folder)


def server_run(uri, run):
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
    found = server_run(uri, run)
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
    assert server_run(uri, child).data.tags["mlflow.parentRunId"] == parent.run_id
    assert "mlflow.parentRunId" not in server_run(uri, parent).data.tags
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
    found = server_run(uri, opened[0])
    assert (found.info.status, found.data.metrics) == ("FAILED", {"loss": 2.0})


def test_a_run_travels_to_another_process_as_plain_text(store):
    _, uri = store
    with start_run(uri, "tests", "train") as run:
        arrived = pickle.loads(pickle.dumps(run))  # noqa: S301 - our own bytes, as Ray sends them
        arrived.metrics({"from_worker": 1.0})
        arrived.flush()
        assert server_run(uri, run).data.metrics == {"from_worker": 1.0}
    assert arrived == run


def test_what_cannot_be_stored_is_said_and_does_not_stop_the_stage(store, caplog):
    _, uri = store
    with start_run(uri, "tests", "train") as run:
        run.params({"same": 1})
        run.flush()
        run.params({"same": 2})  # MLflow refuses to change a parameter
    assert server_run(uri, run).info.status == "FINISHED"
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
    assert "mlflow.parentRunId" not in server_run(uri, run).data.tags


def test_the_default_store_is_in_the_output_folder_whatever_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(TrackingConfig(), tmp_path.__class__("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "file:mlruns", "mlruns", "/tmp/mlruns"])
def test_a_file_store_is_refused_by_the_field(uri, tmp_path):
    with pytest.raises(ConfigError, match=r"tracking\.uri: expected sqlite:///FILE, http\(s\)://SERVER or off"):
        resolve_uri(TrackingConfig(uri=uri), tmp_path)


def test_a_relative_database_is_the_same_file_for_a_process_in_another_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(TrackingConfig(uri="sqlite:///runs/mlflow.db"), tmp_path) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_uri(TrackingConfig(uri="sqlite:///m.db?timeout=9"), tmp_path) == f"sqlite:///{tmp_path}/m.db?timeout=9"


def test_servers_and_databases_are_taken_as_given(tmp_path):
    for uri in ("http://host:5000", "https://host", "sqlite:////data/mlflow.db"):
        assert resolve_uri(TrackingConfig(uri=uri), tmp_path) == uri


@pytest.mark.parametrize("uri", ["nonsense://x", "ftp://host/mlflow"])
def test_a_uri_that_can_never_work_is_refused_before_the_stage(uri, tmp_path):
    with pytest.raises(ConfigError, match=r"tracking\.uri"), start_run(uri, "tests", "train"):
        pytest.fail("the stage began")
    with pytest.raises(ConfigError, match=r"tracking\.uri"):
        resolve_uri(TrackingConfig(uri=uri), tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"tracking\.uri: cannot make"), start_run(f"sqlite:///{tmp_path}/file/db", "e", "n"):
        pytest.fail("the stage began")


def test_an_artifact_that_is_not_there_is_said_and_does_not_stop_the_stage(store, caplog):
    folder, uri = store
    with start_run(uri, "tests", "train") as run:
        run.artifact(folder / "not-there")
        run.metrics({"after": 1.0})
    assert f"{folder / 'not-there'} is not there any more and is not recorded" in caplog.text
    assert server_run(uri, run).data.metrics == {"after": 1.0}


def test_a_file_is_recorded_as_it_was_at_that_moment(store, tmp_path):
    folder, uri = store
    report = tmp_path / "report.txt"
    report.write_text("first")
    with start_run(uri, "tests", "train") as run:
        run.artifact(report)
        report.write_text("later")
    assert (folder / "mlartifacts" / run.run_id / "artifacts" / "report.txt").read_text() == "first"


def test_nothing_is_left_beside_the_output_when_all_is_sent(store, tmp_path):
    _, uri = store
    place = Place.beside(tmp_path / "checkpoint", TrackingConfig(), "t0")
    with start_run(uri, "tests", "train", place=place) as run:
        run.image(b"png", "grid")
        assert list(tmp_path.iterdir()) == [tmp_path / ".checkpoint.tracking"]
    assert list(tmp_path.iterdir()) == []
    assert server_run(uri, run).info.status == "FINISHED"


def test_the_same_place_goes_on_in_the_same_run(store, tmp_path):
    _, uri = store
    place, seen = Place(tmp_path / "spools", "t1"), []

    def stage(step, fails):
        with start_run(uri, "tests", "train", place=place, tags={"attempt": str(step)}) as run:
            run.params({"same": 1})
            run.metrics({"loss": float(step)}, step=step)
            assert run.read_figures("loss") == {s: {"loss": float(s)} for s in range(step + 1)}
            assert run.flush(60)
            seen.append((run.run_id, server_run(uri, run).info.status))
            if fails:
                raise KeyError("stop")

    for step in range(2):
        with pytest.raises(KeyError):
            stage(step, fails=True)
    stage(2, fails=False)
    assert len({run_id for run_id, _ in seen}) == 1
    assert {status for _, status in seen} == {"RUNNING"}
    client = MlflowClient(tracking_uri=uri)
    found = client.get_run(seen[0][0])
    assert (found.info.status, found.data.tags["attempt"]) == ("FINISHED", "2")
    assert sorted((m.step, m.value) for m in client.get_metric_history(found.info.run_id, "loss")) == [(0, 0), (1, 1), (2, 2)]
    assert not (tmp_path / "spools").exists()


def test_a_finished_run_that_starts_again_is_running_again(store, tmp_path):
    _, uri = store
    place, ids = Place(tmp_path / "spools", "t2"), []
    for attempt in ("first", "second"):
        with start_run(uri, "tests", "train", place=place, tags={"attempt": attempt}) as run:
            run.metrics({"loss": 1.0})
            assert run.flush(60)
            found = server_run(uri, run)
            assert (found.info.status, found.data.tags["attempt"]) == ("RUNNING", attempt)
        ids.append(run.run_id)
        assert server_run(uri, run).info.status == "FINISHED"
    assert ids[0] == ids[1]


def test_what_another_output_of_the_same_place_left_is_sent_and_its_run_ends(store, tmp_path):
    _, uri = store
    spool = tmp_path / "spools" / "gone-1"
    spool.mkdir(parents=True)
    Spec("gone", uri, "tests", "abandoned", {}, 1000).keep(spool)  # as a driver leaves it that is killed before anything is sent
    Writer(spool).append("metrics", {"values": {"loss": 3.0}, "step": 7})
    with start_run(uri, "tests", "train", place=Place(tmp_path / "spools", "new")) as run:
        pass
    send_what_is_left(tmp_path / "spools", seconds=60)
    assert not spool.exists()
    client = MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([run.experiment_id], "tags.`semantica.run` = 'gone'")
    assert (found.info.status, found.info.run_name, found.data.metrics) == ("KILLED", "abandoned", {"loss": 3.0})


def test_samples_of_the_machine_have_mlflows_names(store):
    _, uri = store
    with start_run(uri, "tests", "train", tracking=TrackingConfig(system_metrics_s=0.05)) as run:
        deadline = time.monotonic() + 60
        while len(run.read_figures("system/cpu_utilization_percentage")) < 2:
            assert time.monotonic() < deadline, "no sample in a minute"
            time.sleep(0.05)
    names = set(server_run(uri, run).data.metrics)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes", "system/disk_usage_percentage"} <= names
