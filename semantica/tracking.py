"""MLflow tracking: one experiment, a run a stage, a parent run for a whole pipeline.

`Run` is a small picklable handle (tracking URI and run id) over MlflowClient, so a worker process logs into the run that its
driver opened, no global state is touched, and every stage logs the same way. The default store is SQLite in the output folder.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from semantica.config import config
from semantica.errors import ConfigError

log = logging.getLogger(__name__)

_MAX_PARAM = 500  # characters an MLflow parameter may hold in every store
_PENDING: dict[str, list[Any]] = {}  # run id -> what this process logged in the background since the last flush


@config
class TrackingConfig:
    """uri: an MLflow tracking URI; "" is SQLite (mlflow.db) beside the output folder, "off" records nothing."""

    uri: str = ""
    experiment: str = "semantica"


@lru_cache(maxsize=8)
def _client(uri: str) -> Any:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # Read when mlflow is imported: it would report the making of every table of a new SQLite store.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is sent anywhere unless asked for
    from mlflow import MlflowClient  # two seconds to import: only where runs are recorded

    return MlflowClient(tracking_uri=uri)


@dataclass(frozen=True)
class Run:
    """A handle on one MLflow run; run_id "" (tracking off) accepts every call and records nothing."""

    uri: str = ""
    experiment_id: str = ""
    run_id: str = ""

    def params(self, values: Mapping[str, Any]) -> None:
        """Record a (nested) mapping as parameters named with dots."""
        if self.run_id:
            for name, value in _flatten(values):
                operation = _client(self.uri).log_param(self.run_id, name, str(value)[:_MAX_PARAM], synchronous=False)
                _PENDING.setdefault(self.run_id, []).append(operation)

    def metrics(self, values: Mapping[str, float | int], step: int = 0) -> None:
        """Record figures at a step, in the background."""
        if self.run_id:
            for name, value in values.items():
                operation = _client(self.uri).log_metric(self.run_id, name, float(value), step=step, synchronous=False)
                _PENDING.setdefault(self.run_id, []).append(operation)

    def image(self, png: bytes, name: str) -> None:
        """Record a PNG as the artifact images/NAME.png."""
        self.bytes(png, f"images/{name}.png")

    def bytes(self, data: bytes, path: str) -> None:
        """Record bytes as an artifact at `path` (with folders) inside the run."""
        if self.run_id:
            import tempfile

            with tempfile.TemporaryDirectory() as scratch:
                local = Path(scratch) / Path(path).name
                local.write_bytes(data)
                self.artifact(local, str(Path(path).parent) if Path(path).parent != Path() else None)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file as an artifact."""
        if self.run_id:
            _client(self.uri).log_artifact(self.run_id, str(path), folder)

    def flush(self) -> None:
        """Wait until everything logged into this run by this process is stored; say what could not be."""
        # Not mlflow.flush_async_logging(): it flushes the global tracking URI, which makes an mlflow.db in the working directory.
        if pending := _PENDING.pop(self.run_id, None):
            from mlflow.exceptions import MlflowException
            from mlflow.utils.async_logging.run_operations import RunOperations

            try:
                RunOperations([future for operation in pending for future in operation._operation_futures]).wait()
            except MlflowException as error:
                log.warning("tracking: some figures of run %s are not recorded: %s", self.run_id, error)


def resolve_uri(tracking: TrackingConfig, default_folder: Path) -> str:
    """The tracking URI with the default filled in: SQLite in `default_folder`; "off" stays "off"."""
    if tracking.uri == "":
        return f"sqlite:///{default_folder.absolute()}/mlflow.db"
    if tracking.uri.startswith("file:") or ("://" not in tracking.uri and tracking.uri != "off"):
        raise ConfigError(f"tracking.uri: expected sqlite:///FILE, http(s)://SERVER or off, got {tracking.uri!r}")
    return tracking.uri


@contextmanager
def start_run(
    uri: str, experiment: str, name: str, *, parent: Run | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """A Run that ends FINISHED, or FAILED when the block raises."""
    if uri == "off":
        yield Run()
        return
    all_tags = {"semantica.stage": name, "mlflow.source.git.commit": git_commit(), **(tags or {})}
    if parent is not None and parent.run_id:
        all_tags["mlflow.parentRunId"] = parent.run_id
    run = _create_run(uri, experiment, name, all_tags)
    client = _client(uri)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    finally:
        run.flush()
        client.set_terminated(run.run_id, status)


def _create_run(uri: str, experiment: str, name: str, tags: Mapping[str, str]) -> Run:
    from mlflow.exceptions import MlflowException

    try:
        client = _client(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            # Beside the SQLite file, so that one folder holds everything; a server decides for itself.
            database = Path(uri.removeprefix("sqlite:///")).absolute()
            location = (database.parent / "mlartifacts").as_uri() if uri.startswith("sqlite:///") else None
            experiment_id = client.create_experiment(experiment, artifact_location=location)
        else:
            experiment_id = found.experiment_id
        created = client.create_run(experiment_id, run_name=name, tags=dict(tags))
    except MlflowException as error:
        first = str(error).strip().splitlines()[0][:200]
        raise ConfigError(f"tracking.uri: cannot record runs at {uri} ({first}); give another URI, or off") from None
    return Run(uri, experiment_id, created.info.run_id)


@lru_cache(maxsize=1)
def git_commit() -> str:
    """The commit of the checkout this package runs from, or "unknown"."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return "unknown"
    return done.stdout.strip() or "unknown"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
