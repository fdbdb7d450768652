"""The frame of every stage: a Ray session, an MLflow run, the stage's output folder, and one line that says what happened."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path

import ray
from ray.exceptions import RayError

from semantica.config import config_hash, to_dict
from semantica.data.dataset import TIMING, Manifest, StageOutput
from semantica.data.location import Location, write_atomically
from semantica.errors import ConfigError, DataError, SemanticaError
from semantica.runtime import ClusterConfig, Runtime
from semantica.tracking import Place, Run, resolve_uri, send_what_is_left, start_run

RUN = "_run.json"  # in an output: which run made it, so that the next start goes on in it
_SHARED: ContextVar[bool] = ContextVar("shared", default=False)


@contextmanager
def shared_ray() -> Iterator[None]:
    """Stages inside the block share the Ray that the first of them starts; when none has work to do, none is started."""
    token, running = _SHARED.set(True), ray.is_initialized()
    try:
        yield
    finally:
        _SHARED.reset(token)
        if not running:  # a Ray that the caller had is the caller's to end
            ray.shutdown()


@contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """A Ray to work on: the running one, the cluster of RAY_ADDRESS, or a local one that ends with the block."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unless asked for
    # Workers import torch and transformers: their chatter belongs to them, what goes wrong comes back as an exception.
    quiet = {"log_to_driver": cluster.worker_logs, "logging_level": logging.ERROR, "configure_logging": True}
    # Threads of a worker share two arenas of malloc: with one each, it keeps for hours what each of them once held.
    variables = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "MALLOC_ARENA_MAX": "2"}
    environment = {"env_vars": variables}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(runtime_env=environment, **quiet)
    else:
        if not cluster.worker_logs:
            # Ray Data's actor pools make the driver's C++ core print a warning about Ray's own internals for each pool.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(
            address="local",  # a head that somebody started on this machine is not joined unless RAY_ADDRESS says so
            # Logical CPUs: enough for every training worker, since a group that never fits would wait for ever.
            num_cpus=cluster.num_cpus or max(os.cpu_count() or 1, math.ceil(cluster.num_workers * cluster.cpus_per_worker)),
            object_store_memory=cluster.object_store_mb * 2**20,
            include_dashboard=False,
            runtime_env=environment,
            **quiet,
        )
    try:
        yield
    finally:
        if not _SHARED.get():
            ray.shutdown()


@dataclass
class StageSession:
    """What a stage's shell works with: its output, its MLflow run, and `done`, the manifest when the work was done before."""

    stage: StageOutput
    run: Run
    done: Manifest | None
    summary: str = ""
    notes: list[str] = field(default_factory=list)


@contextmanager
def stage_session(
    name: str,
    stage: StageOutput,
    runtime: Runtime,
    parent: Run | None,
    *,
    title: str = "",
    ready: Callable[[], object] = lambda: None,
) -> Iterator[StageSession]:
    """Open the output, Ray and an MLflow run for a stage; print one line at its end. Users' errors come out of Ray unwrapped.

    title: what the run is called in MLflow; "": as the stage. ready: called before an earlier output is taken away, when Ray runs;
    it raises what would keep the new work from its first result.
    """
    check_absolute_when_submitted(stage.folder)
    done = stage.finished()
    if done is None:
        with stage.held():
            done = stage.check(fresh=runtime.fresh)  # again: another process may have finished it a moment ago
            if done is None:
                yield from _work(name, stage, runtime, parent, title or name, ready)
                return
    say(f"{name:<9} already done: {_shown(stage.folder)}")
    if runtime.tracking.uri != "off":
        tracking, token = runtime.tracking, run_token(stage.folder, make=False)
        send_what_is_left(Place.beside(stage.folder, tracking).root, done=token, seconds=tracking.flush_s)
    yield StageSession(stage, Run(), done)


@contextmanager
def parent_run(name: str, out: Path, runtime: Runtime, *, work: str, done: bool = False) -> Iterator[tuple[Run, Runtime]]:
    """One Ray and one MLflow run above several stages that write into `out`; the runtime is the one to give them.

    work: names what is done in `out`, so that the same command goes on in the same run. done: nothing is left to do or to record.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: cannot be made ({error.strerror or error}); choose another folder") from None
    uri = resolve_uri(runtime.tracking, out)
    runtime = replace(runtime, tracking=replace(runtime.tracking, uri=uri))
    tracking = replace(runtime.tracking, system_metrics_s=0.0)  # the stages sample
    place = None
    if uri != "off":
        place = Place(out / ".tracking", run_token(out, work=work, make=not done))
        if done:
            send_what_is_left(place.root, done=place.token, seconds=tracking.flush_s)
            uri = "off"
    with shared_ray(), start_run(uri, tracking.experiment, name, place=place, tracking=tracking) as parent:
        yield parent, runtime


def _work(
    name: str, stage: StageOutput, runtime: Runtime, parent: Run | None, title: str, ready: Callable[[], object]
) -> Iterator[StageSession]:
    database = stage.folder.parent if isinstance(stage.folder, Path) else Path.cwd()  # SQLite needs a disk
    tracking = runtime.tracking
    uri = parent.uri if parent and parent.folder else resolve_uri(tracking, database)
    started = time.monotonic()
    with ray_session(runtime.cluster), ExitStack() as recorded:
        try:
            if stage.replaces():
                ready()
            stage.begin(fresh=runtime.fresh)
            place = Place.beside(stage.folder, tracking, "" if uri == "off" else run_token(stage.folder))
            tags = {"semantica.config_hash": config_hash(stage.record)}
            tags |= {f"semantica.inputs.{kind}": manifest for kind, manifest in stage.inputs.items()}
            run = recorded.enter_context(
                start_run(uri, tracking.experiment, title, parent=parent, tags=tags, place=place, tracking=tracking)
            )
            run.params({**stage.begun_with(), "inputs": dict(stage.inputs)})  # MLflow keeps the first value of a parameter
            run.tags({"cluster": to_dict(runtime.cluster), **stage.changes()})  # the next start of the same run may have others
            session = StageSession(stage, run, None)
            yield session
        except RayError as error:
            raise user_error(error) or error from None
        seconds = time.monotonic() - started
        run.metrics({"stage_seconds": seconds})
        if manifest := stage.finished():
            run.tags({"semantica.manifest": manifest.hash})
        # Beside the manifest, not in it: the same work has the same hash however long it took. The last attempt's alone.
        write_atomically(stage.folder / TIMING, json.dumps({"seconds": seconds}).encode())
        say(f"{name:<9} {session.summary} in {seconds:.1f} s -> {_shown(stage.folder)}")
        for note in session.notes:
            say(f"{'':<9} {note}")


def run_token(folder: Location, *, work: str = "", make: bool = True) -> str:
    """What names the run that fills this folder with this work: made when none has begun, or when the folder is a copy of another.

    work: names what is done, where the folder itself does not keep to one configuration. make: else "" is returned.
    """
    begun = {"folder": str(folder), "work": work}
    try:
        known = json.loads((folder / RUN).read_text())
        if known | begun == known:
            return str(known["token"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        pass  # none, or damaged: a run of its own
    if not make:
        return ""
    token = uuid.uuid4().hex
    write_atomically(folder / RUN, json.dumps({**begun, "token": token}).encode())
    return token


def check_resources(cluster: ClusterConfig, *, gpus: float) -> None:
    """Raise ConfigError when a local Ray has fewer CPUs or GPUs than one stage needs at least: Ray itself would wait for ever.

    A cluster may grow, so with RAY_ADDRESS set nothing is checked.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    there = ray.cluster_resources()
    needed = {"CPU": max(cluster.cpus_per_actor, cluster.num_workers * cluster.cpus_per_worker), "GPU": gpus}
    for resource, amount in needed.items():
        if amount > there.get(resource, 0):
            have = there.get(resource, 0)
            raise ConfigError(f"cluster: {amount:g} {resource}s are asked for, this machine's Ray has {have:g}; ask for fewer")


def _shown(folder: Location) -> str:
    """The folder as a person in this directory would type it."""
    if not isinstance(folder, Path):
        return str(folder)
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)


def say(line: str) -> None:
    """One line of progress for a person, on stderr, so that stdout stays for results."""
    print(line, file=sys.stderr, flush=True)


def user_error(error: BaseException) -> SemanticaError | None:
    """The user's error inside what Ray wraps around a worker's exception, or None when there is none."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        # Ray makes a class that is both RayTaskError and the cause's class: its text holds a traceback, the cause's does not.
        cause = getattr(current, "cause", None)
        if isinstance(current, SemanticaError) and not isinstance(current, RayError):
            return current
        inner = [cause, current.__cause__, current.__context__]
        inner += list(getattr(current, "worker_failures", {}).values())
        queue += [e for e in inner if isinstance(e, BaseException)]
    return None


def check_absolute_when_submitted(folder: Location) -> None:
    """Raise ConfigError for an output inside the temporary folder that `ray job submit --working-dir` unpacks to.

    Also for a URI where only a path is taken: train, generate and evaluate write to a disk, if need be a mounted one.
    """
    if isinstance(folder, Path) and (scheme := next((part for part in folder.parts if part in ("s3:", "gs:", "gcs:")), "")):
        raise ConfigError(
            f"--out: this stage writes to a local or mounted disk, not to {scheme}//; it may read encodings from there"
        )
    if isinstance(folder, Path) and "working_dir_files" in folder.absolute().parts:
        raise ConfigError(f"a submitted job needs absolute paths: {folder} would be deleted with the job's working directory")
