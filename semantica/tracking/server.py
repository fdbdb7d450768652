"""The MLflow side of tracking: the client, and the run of a spec, which is created once and filled.

Everything here waits for the network or for SQLite, so only the sender's thread calls it. Every call may be repeated without a
second effect. A run is searched by its token before it is created. MLflow's metrics have (name, step, time, value) as their key,
and the time is set when the figure is recorded. Parameters, tags and artifacts replace themselves.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from semantica.tracking.spool import Spec

TOKEN = "semantica.run"  # the tag by which a run is found again
_MOST_METRICS, _MOST_WORDS = 1000, 100  # the most that MLflow takes in one request
_CLIENTS = threading.Lock()  # else two threads would create the tables of a new SQLite store at once
_ONE_AT_A_TIME = threading.Lock()  # else a child and its parent could both create the parent's run
# MLflow's error codes for a value that it will never accept; every other error may be temporary.
_FINAL = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"})


@lru_cache(maxsize=1)
def load() -> None:
    """Import MLflow, which takes two seconds, with its messages and telemetry off. Makes no connection."""
    # Read when MLflow is imported: it would report the creation of every table of a new SQLite store.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is sent anywhere unless asked for
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for results
    # The sender retries itself. MLflow's own retry would create a second run when the answer to the first request is lost.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    for name, level in (("alembic", logging.WARNING), ("mlflow", logging.WARNING), ("mlflow.store.db.utils", logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)
    import mlflow  # noqa: F401 - only where runs are recorded


@lru_cache(maxsize=8)
def _client(uri: str) -> Any:
    load()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)  # opens a SQLite file and creates its tables


def client(uri: str) -> Any:
    """MLflow's client of the URI."""
    with _CLIENTS:
        return _client(uri)


def redact(text: object) -> str:
    """The first line of a text, without the passwords of URIs."""
    lines = str(text).strip().splitlines() or [type(text).__name__]
    return re.sub(r"//[^/@\s]*@", "//", lines[0])[:300]


@dataclass
class Batch:
    """Figures of consecutive records, for one request."""

    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)  # (name, value, ms, step)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def takes(self, record: dict[str, Any]) -> bool:
        """Add the record. Returns False, and adds nothing, when it belongs to the next request."""
        values = record["values"]
        if record["kind"] == "metrics":
            if self.metrics and len(self.metrics) + len(values) > _MOST_METRICS:
                return False
            self.metrics += [(name, value, record["ms"], record["step"]) for name, value in values.items()]
            return True
        words = self.params if record["kind"] == "params" else self.tags
        if words and (len(words) + len(values) > _MOST_WORDS or (words is self.params and words.keys() & values.keys())):
            return False
        words.update(values)
        return True

    def single(self) -> list[Batch]:
        """One batch per figure."""
        return [
            *(Batch(metrics=[metric]) for metric in self.metrics),
            *(Batch(params={name: value}) for name, value in self.params.items()),
            *(Batch(tags={name: value}) for name, value in self.tags.items()),
        ]


class ServerRun:
    """The MLflow run of a spec."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.run_id = self.experiment_id = ""

    def open(self) -> bool:
        """Find the run or create it. Returns True when it was created."""
        with _ONE_AT_A_TIME:
            self.experiment_id, self.run_id, is_new = _find_or_make(self.spec)
        return is_new

    def send(self, batch: Batch) -> list[tuple[Batch, str]]:
        """Send figures. Returns those that MLflow will never accept, with its reason. Raises for an error that may be temporary."""
        from mlflow.exceptions import MlflowException

        try:
            self._log(batch)
        except MlflowException as error:
            if error.error_code not in _FINAL:
                raise
            single = batch.single()
            if len(single) == 1:
                return [(batch, redact(error))]
            return [refused for one in single for refused in self.send(one)]
        return []

    def _log(self, batch: Batch) -> None:
        from mlflow.entities import Metric, Param, RunTag

        client(self.spec.uri).log_batch(
            self.run_id,
            [Metric(name, value, ms, step) for name, value, ms, step in batch.metrics],
            [Param(name, value) for name, value in batch.params.items()],
            [RunTag(name, value) for name, value in batch.tags.items()],
        )

    def status(self, status: str, ms: int) -> None:
        """Set the run's status. Any status but RUNNING ends the run at the time `ms`."""
        if status == "RUNNING":
            client(self.spec.uri).update_run(self.run_id, status)
        else:
            client(self.spec.uri).set_terminated(self.run_id, status, ms)

    def artifact(self, path: Path, folder: str | None) -> None:
        """Send a file."""
        client(self.spec.uri).log_artifact(self.run_id, str(path), folder)


def _find_or_make(spec: Spec) -> tuple[str, str, bool]:
    """Find the run, or create it after its parent. Returns (experiment id, run id, whether the run was created now)."""
    mlflow = client(spec.uri)
    experiment = mlflow.get_experiment_by_name(spec.experiment)
    experiment_id = (
        experiment.experiment_id if experiment else mlflow.create_experiment(spec.experiment, _artifact_location(spec.uri))
    )
    runs = mlflow.search_runs([experiment_id], f"tags.`{TOKEN}` = '{spec.token}'", order_by=["start_time ASC"], max_results=1)
    if runs:
        return experiment_id, runs[0].info.run_id, False
    tags = {**spec.tags, TOKEN: spec.token}
    if spec.parent is not None:
        tags["mlflow.parentRunId"] = _find_or_make(spec.parent)[1]
    run = mlflow.create_run(experiment_id, start_time=spec.started_ms, tags=tags, run_name=spec.name)
    return experiment_id, run.info.run_id, True


def _artifact_location(uri: str) -> str | None:
    """Beside the SQLite file, so that one folder holds everything; None leaves the choice to the server."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
