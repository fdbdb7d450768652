"""Shards through Ray Data: a stage's work as a list of independent shards, each a call of a pure function in a task or an actor.

A shard is a small plain dict; data is read and written by the worker, so what flows through Ray is descriptions and receipts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from semantica import errors
from semantica.data.location import explained, is_storage_error
from semantica.distributed.session import check_resources
from semantica.errors import DataError, SemanticaError
from semantica.progress import Meter
from semantica.runtime import ClusterConfig


def _dataset(shards: Sequence[dict[str, Any]]) -> ray.data.Dataset:
    context = DataContext.get_current()
    context.enable_progress_bars = False  # one bar of our own, which counts pictures instead of blocks
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"shard": json.dumps(shard)} for shard in shards]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def _may_pass(error: BaseException) -> bool:
    return is_storage_error(error) and not isinstance(error, (FileNotFoundError, PermissionError))


def _steadily(work: Callable[[dict[str, Any]], Any], shard: dict[str, Any]) -> Any:
    """work(shard), tried again when storage fails: a store that is busy for a moment must not end a job of hours."""
    patience = wait_exponential(1, max=20)
    return Retrying(stop=stop_after_attempt(4), wait=patience, retry=retry_if_exception(_may_pass), reraise=True)(work, shard)


class _Unpack:
    """Calls the worker with the shard's plain dict and packs its plain result.

    A user's error travels as a value: Ray would wrap one from a call in three exceptions, and turn one from an actor's
    constructor into text.
    """

    def __init__(self, make: Callable[..., Callable[[dict[str, Any]], Any]], arguments: tuple[Any, ...]) -> None:
        self.error = ""
        try:
            self.work = make(*arguments)
        except SemanticaError as error:
            self.error = _packed(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.error:
            return {"result": "", "error": self.error}
        try:
            return {"result": json.dumps(_steadily(self.work, json.loads(row["shard"]))), "error": ""}
        except SemanticaError as error:
            return {"result": "", "error": _packed(error)}
        except Exception as error:
            if is_storage_error(error):
                return {"result": "", "error": _packed(DataError(f"storage: {explained(error)}; run the same command to go on"))}
            raise


def _packed(error: SemanticaError) -> str:
    return json.dumps([type(error).__name__, str(error)])


def _raise(packed: str) -> NoReturn:
    name, message = json.loads(packed)
    raise getattr(errors, name, SemanticaError)(message)


def _results(dataset: ray.data.Dataset) -> Iterator[Any]:
    for row in dataset.iter_rows():
        if row["error"]:
            _raise(row["error"])
        yield json.loads(row["result"])


def in_actors(
    make: Callable[..., Callable[[dict[str, Any]], Any]],
    arguments: tuple[Any, ...],
    shards: Sequence[dict[str, Any]],
    cluster: ClusterConfig,
) -> Iterator[Any]:
    """The result of `make(*arguments)(shard)` for every shard, as they are ready; `make`, once an actor, loads the weights."""
    if not shards:
        return
    check_resources(cluster, gpus=cluster.gpus_per_actor)
    size = min(cluster.num_actors, len(shards))
    results = _dataset(shards).map(
        _Unpack,
        fn_constructor_args=(make, arguments),
        compute=ActorPoolStrategy(min_size=min(cluster.min_actors, size), max_size=size, initial_size=size),
        num_cpus=cluster.cpus_per_actor,
        num_gpus=cluster.gpus_per_actor or None,
    )
    yield from _results(results)


def check_actor(make: Callable[..., Callable[[dict[str, Any]], Any]], arguments: tuple[Any, ...], cluster: ClusterConfig) -> None:
    """Make one actor of `in_actors` and let it go. Raises what keeps it from working: resources that are missing, or weights."""
    check_resources(cluster, gpus=cluster.gpus_per_actor)
    trial = ray.remote(num_cpus=cluster.cpus_per_actor, num_gpus=cluster.gpus_per_actor, max_retries=0)(_error_of)
    if error := ray.get(trial.remote(make, arguments)):
        _raise(error)


def _error_of(make: Callable[..., Callable[[dict[str, Any]], Any]], arguments: tuple[Any, ...]) -> str:
    return _Unpack(make, arguments).error


def in_tasks(
    make: Callable[..., Callable[[dict[str, Any]], Any]],
    arguments: tuple[Any, ...],
    shards: Sequence[dict[str, Any]],
    *,
    width: int | None = None,
) -> Iterator[Any]:
    """The result of `make(*arguments)(shard)` for every shard, as they are ready; for work that loads no weights.

    width: how many run at once, where that is not the cluster's to decide.
    """
    if not shards:
        return
    unpacked = _Unpack(make, arguments)
    size = min(width, len(shards)) if width else None  # Ray warns of more than there is work for
    # Ray Data wants a function or a class, and `unpacked` is an instance.
    yield from _results(_dataset(shards).map(lambda row: unpacked(row), num_cpus=1, compute=TaskPoolStrategy(size=size)))


def with_meter(results: Iterator[Any], name: str, total: int, unit: str, amount: Callable[[Any], int]) -> None:
    """Take all results, with a bar that advances by `amount(result)`."""
    with Meter(name, total, unit) as meter:
        for result in results:
            meter.advance(amount(result))
