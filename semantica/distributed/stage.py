"""A stage is a value: its output, the passes over the shards that are missing, and how the output is finished. `run_stage` runs it.

Every stage gets the same frame: one process fills the output at a time, an MLflow run, a progress bar, one line at the end. Shards
go through Ray Data to tasks or to a pool of actors, or, when there are few, to this process. Workers read and write data
themselves: what travels through Ray is the worker's arguments, shards and results, as pickled objects.
"""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from semantica.config import config_hash, require, to_dict
from semantica.data.dataset import TIMING, Manifest, StageOutput
from semantica.data.durable import write_atomically
from semantica.data.location import explained, is_storage_error
from semantica.distributed.progress import Meter
from semantica.distributed.runtime import ClusterConfig, Runtime
from semantica.distributed.session import (
    check_absolute_when_submitted,
    check_resources,
    ray_runs,
    ray_session,
    run_token,
    say,
    shown,
    user_error,
)
from semantica.errors import DataError, SemanticaError
from semantica.tracking import Place, Run, resolve_uri, send_what_is_left, start_run

if TYPE_CHECKING:
    import ray.data

S = TypeVar("S")
R = TypeVar("R")


def _one(result: object) -> int:
    return 1


@dataclass(frozen=True, kw_only=True)
class Pass(Generic[S, R]):
    """Independent shards; the result of each is `worker(*arguments)(shard)`, in the order in which they are ready.

    pool: actors build the worker, since it loads weights; otherwise it is sent to tasks. here: so little work that this process
    does it, unless a Ray already runs. width: the number of tasks at once, where the cluster must not decide it. name, unit, total
    and size are for the progress bar, whose `total` is the sum of `size(result)`. each: called with each result; it may raise.
    """

    worker: Callable[..., Callable[[S], R]]
    arguments: tuple[Any, ...]
    shards: Sequence[S]
    name: str = ""  # "": as the stage
    unit: str = "shards"
    total: int | None = None  # None: one for each shard
    size: Callable[[R], int] = _one
    each: Callable[[R], None] | None = None
    pool: bool = False
    here: bool = False
    width: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of a stage. passes: asked for when the output is open, each run to its end before the next is asked for.

    finish: checks what the passes left, sets the session's summary and notes, and returns the manifest of the finished output.
    ready: called before an earlier output is deleted; it raises what would keep the new work from its first result.
    """

    name: str
    out: StageOutput
    passes: Callable[[StageSession], Iterable[Pass[Any, Any]]]
    finish: Callable[[StageSession], Manifest]
    ready: Callable[[StageSession], object] = lambda session: None


@dataclass
class StageSession:
    """What a stage works with: its output, its MLflow run, and `done`, the manifest when the work was done before."""

    out: StageOutput
    run: Run
    done: Manifest | None
    cluster: ClusterConfig
    summary: str = ""
    notes: list[str] = field(default_factory=list)
    _ray: ExitStack = field(default_factory=ExitStack)

    def start_ray(self) -> None:
        """Connect to Ray until the end of the session, if this process is not connected yet."""
        self._ray.enter_context(ray_session(self.cluster))


def run_stage(stage: Stage, runtime: Runtime, parent: Run | None = None) -> Manifest:
    """The manifest of the stage's output: read when the same work is done, otherwise made by running what is missing."""
    with stage_session(stage.name, stage.out, runtime, parent, ready=stage.ready) as session:
        if session.done is not None:
            return session.done
        for one in stage.passes(session):
            run_pass(one, session, stage.name)
        manifest = stage.finish(session)
        session.run.metrics(manifest.counts)
        return manifest


def run_pass(one: Pass[Any, Any], session: StageSession, stage: str) -> None:
    """Make the shards of a pass."""
    if not one.shards:
        return
    total = len(one.shards) if one.total is None else one.total
    with Meter(one.name or stage, total, one.unit) as meter:
        if one.here and not ray_runs():
            results: Iterator[Any] = map(_Calls(one.worker, one.arguments).result, one.shards)
        else:
            session.start_ray()
            results = through_ray(one, session.cluster)
        for result in results:
            if one.each is not None:
                one.each(result)
            meter.advance(one.size(result))


def build_one(worker: Callable[..., object], arguments: tuple[Any, ...], session: StageSession) -> None:
    """Build one worker of a pool and let it go. Raises what keeps it from working: resources that are missing, or weights."""
    import ray

    session.start_ray()
    check_resources(session.cluster, gpus=session.cluster.gpus_per_actor)
    resources = {"num_cpus": session.cluster.cpus_per_actor, "num_gpus": session.cluster.gpus_per_actor}
    failed = ray.get(ray.remote(**resources, max_retries=0)(_build).remote(worker, arguments))
    if failed is not None:
        raise failed.error()


def _build(worker: Callable[..., Any], arguments: tuple[Any, ...]) -> _Failed | None:
    error = _Calls(worker, arguments).error
    return None if error is None else _Failed(type(error), str(error))


def through_ray(one: Pass[S, R], cluster: ClusterConfig) -> Iterator[R]:
    """The results of a pass from the Ray that runs, as they are ready."""
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    if one.pool:
        check_resources(cluster, gpus=cluster.gpus_per_actor)
        size = min(cluster.num_actors, len(one.shards))
        rows = _dataset(one.shards).map(
            _Calls,
            fn_constructor_args=(one.worker, one.arguments),
            compute=ActorPoolStrategy(min_size=min(cluster.min_actors, size), max_size=size, initial_size=size),
            num_cpus=cluster.cpus_per_actor,
            num_gpus=cluster.gpus_per_actor or None,
        )
    else:
        calls = _Calls(one.worker, one.arguments)
        width = min(one.width, len(one.shards)) if one.width else None  # Ray warns of more tasks at once than there are shards
        # Ray Data takes a function or a class, and `calls` is an instance.
        rows = _dataset(one.shards).map(lambda row: calls(row), num_cpus=1, compute=TaskPoolStrategy(size=width))
    for row in rows.iter_rows():
        outcome = pickle.loads(row["outcome"])  # noqa: S301 - written by our own worker a moment ago
        if isinstance(outcome, _Failed):
            raise outcome.error()
        yield outcome


def _dataset(shards: Sequence[Any]) -> ray.data.Dataset:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # one bar of our own, which counts pictures instead of blocks
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data.from_items([{"shard": pickle.dumps(shard)} for shard in shards], override_num_blocks=len(shards))


@dataclass(frozen=True)
class _Failed:
    """A user's error on its way to the driver, without what it holds besides its message.

    It travels as a value: Ray would wrap one from a call in three exceptions, and turn one from an actor's constructor into text.
    """

    kind: type[SemanticaError]
    message: str

    def error(self) -> SemanticaError:
        error = self.kind.__new__(self.kind)  # not called: a class of its own may take other arguments
        error.args = (self.message,)
        return error


class _Calls:
    """The worker in a task, in an actor or in this process; a row of Ray Data holds one pickled shard, result or error."""

    def __init__(self, worker: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
        self.error: SemanticaError | None = None
        try:
            self.work = worker(*arguments)
        except SemanticaError as error:
            self.error = error

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        """The pickled result of a row's shard, or the user's error."""
        try:
            outcome = self.result(pickle.loads(row["shard"]))  # noqa: S301 - written by our own driver
        except SemanticaError as error:
            outcome = _Failed(type(error), str(error))
        return {"outcome": pickle.dumps(outcome)}

    def result(self, shard: Any) -> Any:
        """The result of a shard. Raises the error of the worker's constructor, if there was one, and DataError for lost storage."""
        if self.error is not None:
            raise self.error
        try:
            return _patiently(self.work, shard)
        except Exception as error:
            if is_storage_error(error) and not isinstance(error, SemanticaError):
                raise DataError(f"storage: {explained(error)}; run the same command to go on") from error
            raise


def _patiently(work: Callable[[Any], Any], shard: Any) -> Any:
    """work(shard), tried again when storage fails: a store that is busy for a moment must not end a job of hours."""
    patience = wait_exponential(1, max=20)
    return Retrying(stop=stop_after_attempt(4), wait=patience, retry=retry_if_exception(_may_pass), reraise=True)(work, shard)


def _may_pass(error: BaseException) -> bool:
    return is_storage_error(error) and not isinstance(error, (FileNotFoundError, PermissionError))


@contextmanager
def stage_session(
    name: str,
    out: StageOutput,
    runtime: Runtime,
    parent: Run | None,
    *,
    title: str = "",
    ready: Callable[[StageSession], object] = lambda session: None,
) -> Iterator[StageSession]:
    """Open the output and an MLflow run for a stage; print one line at its end. Users' errors come out of Ray unwrapped.

    title: the name of the run in MLflow, "": as the stage. ready: as of a `Stage`. For drivers with an order of their own; others
    call `run_stage`.
    """
    is_absolute = not isinstance(out.folder, Path) or out.folder.is_absolute()
    require(is_absolute, "out", "absolute, since workers have folders of their own", str(out.folder))
    check_absolute_when_submitted(out.folder)
    done = out.finished()
    if done is None:
        with out.held():
            done = out.check(fresh=runtime.fresh)  # again: another process may have finished it a moment ago
            if done is None:
                yield from _recorded(name, out, runtime, parent, title or name, ready)
                return
    say(f"{name:<9} already done: {shown(out.folder)}")
    if runtime.tracking.uri != "off":
        tracking, token = runtime.tracking, run_token(out.folder, make=False)
        send_what_is_left(Place.beside(out.folder, tracking).root, done=token, seconds=tracking.flush_s)
    yield StageSession(out, Run(), done, runtime.cluster)


def _recorded(
    name: str, out: StageOutput, runtime: Runtime, parent: Run | None, title: str, ready: Callable[[StageSession], object]
) -> Iterator[StageSession]:
    """The session of an output, which is opened for it, inside its MLflow run."""
    database = out.folder.parent if isinstance(out.folder, Path) else Path.cwd()  # SQLite needs a disk
    tracking = runtime.tracking
    uri = parent.uri if parent and parent.folder else resolve_uri(tracking, database)
    started = time.monotonic()
    with ExitStack() as ray_of_stage, ExitStack() as recorded:
        session = StageSession(out, Run(), None, runtime.cluster, _ray=ray_of_stage)
        try:
            if out.replaces():
                ready(session)
            out.begin(fresh=runtime.fresh)
            place = Place.beside(out.folder, tracking, "" if uri == "off" else run_token(out.folder))
            tags = {"semantica.config_hash": config_hash(out.record)}
            tags |= {f"semantica.inputs.{kind}": manifest for kind, manifest in out.inputs.items()}
            run = start_run(uri, tracking.experiment, title, parent=parent, tags=tags, place=place, tracking=tracking)
            session.run = recorded.enter_context(run)
            session.run.params({**out.begun_with(), "inputs": dict(out.inputs)})  # MLflow keeps the first value of a parameter
            # What the next start of the same run may have others of.
            session.run.tags({"cluster": to_dict(runtime.cluster), **out.changes()})
            yield session
        except Exception as error:
            from ray.exceptions import RayError

            if isinstance(error, RayError):
                raise user_error(error) or error from None
            raise
        seconds = time.monotonic() - started
        session.run.metrics({"stage_seconds": seconds})
        if manifest := out.finished():
            session.run.tags({"semantica.manifest": manifest.hash})
        # Beside the manifest, not in it: the same work has the same hash however long it took. The last attempt's alone.
        write_atomically(out.folder / TIMING, json.dumps({"seconds": seconds}).encode())
        say(f"{name:<9} {session.summary} in {seconds:.1f} s -> {shown(out.folder)}")
        for note in session.notes:
            say(f"{'':<9} {note}")
