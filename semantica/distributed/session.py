"""What drivers share: a Ray session, an MLflow run above several stages, the checks before a start, and lines for a person.

Ray is imported where it is used: a stage that does its work in this process starts without it, in a tenth of the time.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

from semantica.data.durable import write_atomically
from semantica.data.location import Location
from semantica.distributed.runtime import ClusterConfig, Runtime
from semantica.errors import ConfigError, DataError, SemanticaError
from semantica.tracking import Place, Run, resolve_uri, send_what_is_left, start_run

RUN = "_run.json"  # in an output: the MLflow run that makes it, in which the next start continues
_SHARED: ContextVar[bool] = ContextVar("shared", default=False)


def ray_runs() -> bool:
    """Whether this process is connected to a Ray. Does not import Ray."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@contextmanager
def shared_ray() -> Iterator[None]:
    """Stages inside the block share the Ray that the first of them starts; when none has work to do, none is started."""
    token, running = _SHARED.set(True), ray_runs()
    try:
        yield
    finally:
        _SHARED.reset(token)
        if not running and ray_runs():  # a Ray that the caller had is the caller's to end
            sys.modules["ray"].shutdown()


@contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """A Ray to work on: the running one, the cluster of RAY_ADDRESS, or a local one that ends with the block."""
    if ray_runs():
        yield
        return
    import ray

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


@contextmanager
def parent_run(name: str, out: Path, runtime: Runtime, *, work: str, done: bool = False) -> Iterator[tuple[Run, Runtime]]:
    """One Ray and one MLflow run for several stages that write into `out`. Yields the run and the runtime to give to the stages.

    work: a name of the work, so that the same command continues the same run. done: nothing is left to do or to record.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: the folder cannot be created ({error.strerror or error}); choose another folder") from None
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


def run_token(folder: Location, *, work: str = "", make: bool = True) -> str:
    """The name of the MLflow run that fills this folder. A new one is made if there is none, or if the folder is a copy of another.

    work: a name of the work, for a folder that may hold that of several configurations. make: if False, "" instead of a new name.
    """
    begun = {"folder": str(folder), "work": work}
    try:
        known = json.loads((folder / RUN).read_text())
        if known | begun == known:
            return str(known["token"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        pass  # none, or damaged: a new run
    if not make:
        return ""
    token = uuid.uuid4().hex
    write_atomically(folder / RUN, json.dumps({**begun, "token": token}).encode())
    return token


def check_resources(cluster: ClusterConfig, *, gpus: float) -> None:
    """Raise ConfigError if a local Ray has fewer CPUs or GPUs than a stage needs: Ray itself would wait without end.

    With RAY_ADDRESS set nothing is checked, since a cluster may grow.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    import ray

    available = ray.cluster_resources()
    needed = {"CPU": max(cluster.cpus_per_actor, cluster.num_workers * cluster.cpus_per_worker), "GPU": gpus}
    for resource, amount in needed.items():
        if amount > (have := available.get(resource, 0)):
            raise ConfigError(f"cluster: {amount:g} {resource}s are asked for, this machine's Ray has {have:g}; ask for fewer")


def shown(folder: Location) -> str:
    """The folder as a person in the current directory would type it."""
    if not isinstance(folder, Path):
        return str(folder)
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)


def say(line: str) -> None:
    """One line of progress for a person, on stderr, so that stdout stays for results."""
    print(line, file=sys.stderr, flush=True)


def user_error(error: BaseException) -> SemanticaError | None:
    """The user's error inside the exceptions that Ray wraps around it, or None if there is none."""
    from ray.exceptions import RayError

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
    """Raise ConfigError for an output inside the temporary folder into which `ray job submit --working-dir` unpacks.

    Also for a URI where only a path is allowed: train, generate and evaluate write to a disk, which may be a mounted one.
    """
    if isinstance(folder, Path) and (scheme := next((part for part in folder.parts if part in ("s3:", "gs:", "gcs:")), "")):
        raise ConfigError(
            f"--out: this stage writes to a local or mounted disk, not to {scheme}//; it may read encodings from there"
        )
    if isinstance(folder, Path) and "working_dir_files" in folder.absolute().parts:
        raise ConfigError(f"a submitted job needs absolute paths: {folder} would be deleted with the job's working directory")
