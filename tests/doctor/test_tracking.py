"""MLflow: a file, no file, a server that is dead, silent, old or something else."""

import time

import pytest

from semantica.doctor.tracking import check_tracking
from semantica.tracking import TrackingConfig


def look(uri, folder, seconds=5.0):
    (finding,) = check_tracking(TrackingConfig(uri=uri), folder, seconds=seconds)
    assert finding.name == "mlflow.reachable"
    return finding


def test_off_and_a_file_that_will_be_made_are_well_and_nothing_is_made(tmp_path):
    assert look("off", tmp_path).status == "OK"
    assert look("", tmp_path / "later" / "still").status == "OK"
    assert list(tmp_path.iterdir()) == []


def test_a_database_of_mlflow_is_read_and_any_other_file_fails(tmp_path):
    from semantica.tracking.server import client

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client(uri).create_run(client(uri).create_experiment("some"))
    finding = look(uri, tmp_path)
    assert finding.status == "OK"
    assert "with 1 runs" in finding.found
    (tmp_path / "other.db").write_bytes(b"no database at all, but long enough to be looked at" * 20)
    assert look(f"sqlite:///{tmp_path}/other.db", tmp_path).status == "FAIL"


def test_a_database_where_none_can_be_made_fails(tmp_path):
    (tmp_path / "file").write_text("")
    assert look(f"sqlite:///{tmp_path}/file/mlflow.db", tmp_path).status == "FAIL"
    assert look("sqlite:////proc/mlflow.db", tmp_path).status == "FAIL"


def test_a_file_store_and_an_unknown_scheme_fail(tmp_path):
    assert look(f"file:{tmp_path}", tmp_path).status == "FAIL"
    assert look("gopher://host", tmp_path).status == "FAIL"


def test_a_dead_server_fails_at_once_and_says_how_to_start_one(tmp_path, free_port):
    finding = look(f"http://127.0.0.1:{free_port}", tmp_path)
    assert finding.status == "FAIL"
    assert "does not answer" in finding.found
    assert "mlflow server" in finding.remedy


def test_a_server_that_says_nothing_fails_in_time(tmp_path, listener):
    started = time.monotonic()
    finding = look(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path, seconds=0.3)
    assert finding.status == "FAIL"
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("status", "body", "expected", "said"),
    [
        (200, "3.17.2", "OK", "MLflow 3.17.2"),
        (200, "9.1", "OK", "MLflow 9.1"),
        (200, "2.9.0", "WARN", "MLflow 2.9.0"),
        (200, "<html>", "FAIL", "no version"),
        (403, "", "FAIL", "refuses (403)"),
        (404, "", "FAIL", "answers 404"),
        (500, "", "FAIL", "answers 500"),
    ],
)
def test_a_server_is_known_by_its_version(tmp_path, web, status, body, expected, said):
    finding = look(web(status, body), tmp_path)
    assert finding.status == expected
    assert said in finding.found


def test_a_database_on_another_machine_is_asked_for_its_port_and_the_password_is_not_shown(tmp_path, listener, free_port):
    there = look(f"postgresql://me:secret@127.0.0.1:{listener.getsockname()[1]}/mlflow", tmp_path)
    gone = look(f"postgresql://me:secret@127.0.0.1:{free_port}/mlflow", tmp_path)
    assert (there.status, gone.status) == ("OK", "FAIL")
    assert "secret" not in there.found + gone.found
