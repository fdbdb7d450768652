"""Jobs through `ray job submit` and the job SDK, on a head of its own: logs stream, exit codes carry through, a stopped job leaves
no process behind and goes on later, and the same words do the same from a shell and from Python.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient
from small import draw_pages, random_encoder, small_config

from semantica.config import override, to_dict
from semantica.data.dataset import MANIFEST, read_manifest
from semantica.distributed.pipeline import pipeline
from semantica.distributed.runtime import ClusterConfig, Runtime
from semantica.distributed.session import check_absolute_when_submitted
from semantica.errors import ConfigError
from semantica.tracking import TrackingConfig

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which `ray job submit` finds a head started for these tests; ended by its own process id."""
    port, dashboard, agent = free_port(), free_port(), free_port()
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    env["RAY_JOB_STOP_WAIT_TIME_S"] = "30"  # of grace; Ray's own 3 s are too short for a checkpoint
    env.pop("RAY_ADDRESS", None)
    # Short, because a socket's path may have 107 characters.
    scratch = tmp_path_factory.mktemp("head")
    words = [
        BIN / "ray", "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", "--num-cpus=2", "--object-store-memory=100000000",
    ]  # fmt: skip
    with (scratch / "head.log").open("w") as log:
        process = subprocess.Popen([str(w) for w in words], env=env, stdout=log, stderr=log)
    try:
        env["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
        deadline = time.monotonic() + 90
        while subprocess.run([BIN / "ray", "job", "list"], env=env, capture_output=True, check=False).returncode:
            assert process.poll() is None, (scratch / "head.log").read_text()
            assert time.monotonic() < deadline, "the head's job server did not answer in 90 s"
            time.sleep(1)
        yield env
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        for child in psutil.wait_procs(children, timeout=5)[1]:
            child.kill()  # it waits 30 s for jobs, of which there are none
        process.wait(timeout=60)


def submit(env: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--", "python", "-m", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.ray
def test_a_submitted_job_does_its_work_and_a_failed_one_says_why(head: dict[str, str], tmp_path: Path) -> None:
    root = draw_pages(tmp_path / "pictures", num_pages=3)
    out = tmp_path / "run" / "episodes"
    done = submit(head, "jobs.ingest", "--root", root, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ingest" in done.stdout
    assert read_manifest(out, "episodes").counts["num_images_in"] == 21

    failed = submit(head, "jobs.ingest", "--root", tmp_path / "nothing", "--out", tmp_path / "out")
    assert failed.returncode != 0
    line = next(line for line in failed.stdout.splitlines() if line.startswith("error: ingest"))
    assert str(tmp_path / "nothing") in line


def test_a_submitted_job_refuses_a_relative_output() -> None:
    """`ray job submit --working-dir` runs in a folder of this name, which goes with the job."""
    with pytest.raises(ConfigError, match="needs absolute paths"):
        check_absolute_when_submitted(Path("/ray/session/runtime_resources/working_dir_files/_ray_pkg_0/runs/episodes"))


@pytest.mark.ray
def test_a_local_run_does_not_join_a_head_that_happens_to_run(head: dict[str, str], tmp_path: Path) -> None:
    env = {name: value for name, value in head.items() if name != "RAY_API_SERVER_ADDRESS"}
    root = draw_pages(tmp_path / "pictures", num_pages=3)
    words = [sys.executable, "-m", "jobs.ingest", "--root", str(root), "--out", str(tmp_path / "run" / "episodes")]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr  # joined to the head, Ray would refuse its CPU count


NUM_STEPS = 400


def training_processes() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(p.info["cmdline"] or [])]


def wait_until(what: str, holds: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


@pytest.mark.ray
@pytest.mark.slow
def test_a_stopped_pipeline_ends_its_workers_and_goes_on_with_the_same_words_in_all_three_ways(
    head: dict[str, str], tmp_path: Path
) -> None:
    root, out = draw_pages(tmp_path / "pictures"), tmp_path / "run"
    config = override(
        small_config(random_encoder(tmp_path / "encoder")), {"train.num_steps": NUM_STEPS, "train.checkpoint_every": 10}
    )
    runtime = Runtime(cluster=ClusterConfig(num_actors=1, cpus_per_worker=0.5), tracking=TrackingConfig(uri="off"))
    asked = tmp_path / "pipeline.yaml"
    asked.write_text(yaml.safe_dump({"pipeline": to_dict(config), "runtime": to_dict(runtime)}))
    words = ["jobs.pipeline", "--config", str(asked), "--root", str(root), "--out", str(out)]
    before = set(training_processes())

    client = JobSubmissionClient(head["RAY_API_SERVER_ADDRESS"])
    job = client.submit_job(
        entrypoint=" ".join(["python", "-m", *words]), runtime_env={"working_dir": str(ROOT), "excludes": ["runs"]}
    )

    def saved_or_over() -> bool:
        return client.get_job_status(job).is_terminal() or len(list(out.glob("checkpoint/checkpoints/*/manifest.json"))) > 1

    wait_until("a checkpoint", saved_or_over, 240)
    assert client.get_job_status(job) == JobStatus.RUNNING, client.get_job_logs(job)
    assert set(training_processes()) - before
    assert client.stop_job(job)
    wait_until("the end of the job", lambda: client.get_job_status(job).is_terminal(), 60)
    assert client.get_job_status(job) == JobStatus.STOPPED
    wait_until("the end of its workers", lambda: not set(training_processes()) - before, 30)
    logs = client.get_job_logs(job)
    saved = int(re.search(rf"stopped as asked, saved at step (\d+) of {NUM_STEPS}", logs)[1])
    assert 0 < saved < NUM_STEPS
    encoded = (out / "encodings" / MANIFEST).stat().st_mtime_ns

    goes_on = submit(head, *words)
    assert goes_on.returncode == 0, goes_on.stdout
    assert (out / "encodings" / MANIFEST).stat().st_mtime_ns == encoded
    steps = [entry["step"] for entry in json.loads((out / "checkpoint" / "history.json").read_text())]
    assert steps == sorted(set(steps))
    assert steps[-1] == NUM_STEPS

    alone = {name: value for name, value in head.items() if name != "RAY_API_SERVER_ADDRESS"}
    again = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, env=alone, capture_output=True, text=True, timeout=240, check=False
    )
    assert again.returncode == 0, again.stderr
    skipped = [line.split()[0] for line in again.stderr.splitlines() if "already done" in line]
    assert skipped == ["ingest", "encode", "score", "pairs", "train", "generate", "evaluate"]
    from_python = pipeline(config, root=root, out=out, runtime=runtime)
    assert from_python == read_manifest(out / "evaluation", "evaluation")
