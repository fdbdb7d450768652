"""A real MLflow server that is down, killed, slow, failing or losing its answers: everything arrives, once and in order."""

import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from semantica.tracking import Place, TrackingConfig, send_what_is_left, start_run
from semantica.tracking.spool import Sent

QUICK = TrackingConfig(flush_s=0.3, system_metrics_s=0.0)
PATIENT = TrackingConfig(flush_s=120.0, system_metrics_s=0.0)


def until(holds, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not come in time"
        time.sleep(0.05)


def steps(first, last):
    return [(step, 1 / (step + 1)) for step in range(first, last)]


def log_steps(run, first, last):
    for step, loss in steps(first, last):
        run.metrics({"loss": loss, "same": 0.5}, step=step)


def test_a_server_that_is_down_at_the_start_has_everything_when_it_comes_up(server, tmp_path, caplog):
    server.kill()
    places = [Place.beside(tmp_path / name, QUICK, name) for name in ("all", "train")]
    with (
        start_run(server.uri, "down", "pipeline", place=places[0], tracking=QUICK),
        start_run(server.uri, "down", "train", place=places[1], tracking=QUICK) as run,
    ):
        run.params({"optimizer": {"learning_rate": 1e-4}})
        log_steps(run, 0, 300)
        run.metrics({"odd": float("nan")}, step=1)
        run.image(b"png", "grid")
        assert run.run_id == ""
    assert "304 records of train are not at" in caplog.text  # parameters, 301 steps, a picture and the status
    server.start()
    until(lambda: not any(place.root.exists() for place in places))
    pipeline, train = server.runs("down")
    assert (pipeline.info.run_name, train.info.run_name) == ("pipeline", "train")
    assert {pipeline.info.status, train.info.status} == {"FINISHED"}
    assert server.history(train) == steps(0, 300)
    ((_, odd),) = server.history(train, "odd")
    assert math.isnan(odd)
    assert train.data.params == {"optimizer.learning_rate": "0.0001"}
    assert train.info.end_time - train.info.start_time < 60_000  # the times are those of the stage, not of the sending
    kept = server.folder / "artifacts" / train.info.experiment_id / train.info.run_id / "artifacts" / "images" / "grid.png"
    assert kept.read_bytes() == b"png"


@pytest.fixture
def up(server):
    if server.process is None:
        server.start()
    return server


def test_a_server_killed_in_the_middle_and_started_again_has_everything_once(up, tmp_path, caplog):
    place = Place(tmp_path / "spools", "killed")
    with start_run(up.uri, "killed", "train", place=place, tracking=PATIENT) as run:
        log_steps(run, 0, 100)
        until(lambda: Sent.of(Path(run.folder)).figures)
        log_steps(run, 100, 200)
        up.kill()
        log_steps(run, 200, 300)
        until(lambda: "does not take the figures of train" in caplog.text)
        up.start()
        log_steps(run, 300, 400)
    (found,) = up.runs("killed")
    assert found.info.status == "FINISHED"
    assert up.history(found) == steps(0, 400)
    assert up.history(found, "same") == [(step, 0.5) for step in range(400)]
    assert not place.root.exists()


def test_a_server_that_loses_its_answers_has_one_run_and_every_figure_once(up, proxy, tmp_path):
    proxy.lost_answers = 3  # of making the experiment, of making the run, of figures
    with start_run(proxy.uri, "lost", "train", place=Place(tmp_path / "spools", "lost"), tracking=PATIENT) as run:
        for first in range(0, 60, 20):
            log_steps(run, first, first + 20)
            assert run.flush(60)
    assert proxy.lost_answers == 0
    (found,) = up.runs("lost")
    assert up.history(found) == steps(0, 60)
    assert up.history(found, "same") == [(step, 0.5) for step in range(60)]


def test_a_server_that_fails_and_then_is_slow_has_everything(up, proxy, tmp_path, caplog):
    proxy.fail_with = 500
    with start_run(proxy.uri, "failing", "train", place=Place(tmp_path / "spools", "failing"), tracking=PATIENT) as run:
        log_steps(run, 0, 50)
        until(lambda: len(proxy.asked) >= 3)
        proxy.fail_with, proxy.delay_s = None, 1.0
        log_steps(run, 50, 100)
    (found,) = up.runs("failing")
    assert up.history(found) == steps(0, 100)
    assert caplog.text.count("does not take the figures") == 1
    assert "takes the figures of train again" in caplog.text


def test_an_artifact_store_that_fails_does_not_hold_figures_back(up, proxy, tmp_path, caplog):
    proxy.fail_artifacts = True
    place = Place(tmp_path / "spools", "artifacts")
    with start_run(proxy.uri, "artifacts", "train", place=place, tracking=QUICK) as run:
        run.image(b"png", "first")
        log_steps(run, 0, 50)
        until(lambda: "does not take the files of train" in caplog.text)
        until(lambda: up.runs("artifacts") and up.history(up.runs("artifacts")[0]) == steps(0, 50))
    assert "1 records of train are not at" in caplog.text
    assert up.runs("artifacts")[0].info.status == "FINISHED"
    proxy.fail_artifacts = False
    until(lambda: not place.root.exists())
    assert list(up.folder.glob(f"artifacts/*/{run.run_id}/artifacts/images/first.png"))


def test_a_run_that_somebody_deleted_is_made_again_with_all_its_figures(up, tmp_path):
    from mlflow import MlflowClient

    place = Place(tmp_path / "spools", "deleted")

    def stage(first, last, *, fails):
        with start_run(up.uri, "deleted", "train", place=place, tracking=PATIENT) as run:
            log_steps(run, first, last)
            if fails:
                raise KeyError("stop")
        return run

    with pytest.raises(KeyError):
        stage(0, 10, fails=True)
    (first,) = up.runs("deleted")
    MlflowClient(tracking_uri=up.database).delete_run(first.info.run_id)
    stage(10, 20, fails=False)
    (found,) = up.runs("deleted")
    assert found.info.run_id != first.info.run_id
    assert up.history(found) == steps(0, 20)


def test_the_network_is_for_the_senders_thread_alone(up, proxy, tmp_path):
    connected, watching = set(), [True]

    def hook(event, _):
        if watching and event in ("socket.connect", "socket.getaddrinfo", "sqlite3.connect"):
            connected.add(threading.current_thread().name)

    sys.addaudithook(hook)  # for the rest of the process: the list tells it to stop
    sampled = TrackingConfig(flush_s=120.0, system_metrics_s=0.05)
    with start_run(proxy.uri, "threads", "train", place=Place(tmp_path / "spools", "threads"), tracking=sampled) as run:
        run.params({"a": 1})
        log_steps(run, 0, 10)
        run.image(b"png", "grid")
        assert run.flush(60)
    watching.clear()
    assert "tracking" in connected
    assert not connected & {threading.main_thread().name, "system metrics"}


DRIVER = """
import sys, time
from pathlib import Path
from semantica.tracking import Place, TrackingConfig, start_run
uri, root, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
with start_run(uri, "driver", "train", place=Place(root, "driver"), tracking=TrackingConfig(system_metrics_s=0.0)) as run:
    run.params({"seed": 0})
    known = run.read_figures("loss")  # one more than was printed, if it was killed before it could print
    for step in range(max(known, default=-1) + 1, last):
        run.metrics({"loss": 1 / (step + 1), "same": 0.5}, step=step)
        time.sleep(0.01)
        print(step, flush=True)
    time.sleep(60)
"""


def test_a_driver_killed_while_it_sends_goes_on_in_the_same_run_and_nothing_is_lost_or_doubled(up, proxy, tmp_path):
    proxy.delay_s = 0.05  # so that a kill often falls between what the server has and what the sender knows
    done, seed = 0, random.Random(0)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(3):
        words = [sys.executable, "-c", DRIVER, proxy.uri, str(tmp_path / "spools"), str(done + 150)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        end = done + seed.randrange(60, 150)
        for line in process.stdout:
            if int(line) + 1 >= end:
                break
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        assert process.wait() == -signal.SIGKILL
        done = int(rest[-1]) + 1 if rest else end
    proxy.delay_s = 0.0
    (spool,) = (tmp_path / "spools").iterdir()
    with start_run(proxy.uri, "driver", "train", place=Place(tmp_path / "spools", "driver"), tracking=PATIENT) as run:
        done = 1 + max(run.read_figures("loss"))
        log_steps(run, done, done + 20)
    (found,) = up.runs("driver")
    assert found.info.status == "FINISHED"
    assert up.history(found) == steps(0, done + 20)
    assert up.history(found, "same") == [(step, 0.5) for step in range(done + 20)]
    assert not spool.exists()


def test_what_a_finished_stage_left_is_sent_by_the_next_start_of_its_output(up, proxy, tmp_path):
    """As when the driver is killed between the manifest of its output and the end of its run."""
    root = tmp_path / "spools"
    code = DRIVER.replace("time.sleep(60)", "import os; os.kill(os.getpid(), 9)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    proxy.fail_with = 503
    words = [sys.executable, "-c", code.replace('"driver"', '"left"'), proxy.uri, str(root), "30"]
    assert subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == -signal.SIGKILL
    assert up.runs("left") == []
    proxy.fail_with = None
    send_what_is_left(root, done="left", seconds=60)
    (found,) = up.runs("left")
    assert (found.info.status, up.history(found)) == ("FINISHED", steps(0, 30))
    assert not root.exists()
