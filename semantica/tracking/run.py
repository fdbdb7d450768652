"""A run as a stage sees it: one MLflow experiment, one run per stage, one parent run for a whole pipeline.

`Run` is a small picklable handle on a spool (`spool.py`). A stage appends its records to the spool and never waits for MLflow. A
thread of the driver that opened the run (`sender.py`) sends them. So a server that is down, slow or failing costs a stage nothing:
records that could not be sent are sent by the next start with the same output. The default store is SQLite beside the output.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from semantica.config import config, require
from semantica.data.location import Location, explained
from semantica.errors import ConfigError, Stopped
from semantica.tracking import sender
from semantica.tracking.sender import Sender
from semantica.tracking.server import load, redact
from semantica.tracking.spool import SPEC, Content, Sent, Spec, Writer, artifact_bytes, last_status, num_waiting, records, try_lock
from semantica.tracking.system import sample_system

log = logging.getLogger(__name__)

_MAX_PARAM, _MAX_TAG = 500, 5000  # characters that MLflow takes in every store
_SCHEMES = frozenset({"sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks"})
_BYTES_A_SECOND = 10e6  # the end of a run waits one second longer per so many bytes of artifacts
_ENDED = frozenset({"FINISHED", "FAILED", "KILLED"})
_WRITERS: dict[str, Writer] = {}


@config
class TrackingConfig:
    """uri: an MLflow tracking URI; "" is SQLite (mlflow.db) beside the output folder, "off" records nothing."""

    uri: str = ""
    experiment: str = "semantica"
    flush_s: float = 30.0  # the longest that the end of a stage waits for the server
    system_metrics_s: float = 10.0  # between samples of the driver's processors, memory, disk, network and GPUs; 0: none
    spool: str = ""  # folder of records that are not sent yet; "" is beside an output on a disk, else ~/.local/state

    def __post_init__(self) -> None:
        require(self.flush_s >= 0, "flush_s", "0 or more", self.flush_s)
        require(self.system_metrics_s >= 0, "system_metrics_s", "0 or more", self.system_metrics_s)


@dataclass(frozen=True)
class Run:
    """A handle on one run. folder: its spool; "" (tracking off) accepts every call and records nothing.

    No call raises, and none waits for anything but the disk.
    """

    folder: str = ""
    uri: str = ""

    @property
    def run_id(self) -> str:
        """MLflow's name of the run; "" until MLflow has it."""
        return sender.ids(self.folder)[1] if self.folder else ""

    @property
    def experiment_id(self) -> str:
        """MLflow's name of the experiment; "" until MLflow has the run."""
        return sender.ids(self.folder)[0] if self.folder else ""

    def params(self, values: Mapping[str, Any]) -> None:
        """Record a (nested) mapping as parameters named with dots."""
        self._append("params", {"values": {name: str(value)[:_MAX_PARAM] for name, value in _flatten(values)}})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Record a (nested) mapping as tags. Unlike parameters, tags may change."""
        self._append("tags", {"values": {name: str(value)[:_MAX_TAG] for name, value in _flatten(values)}})

    def metrics(self, values: Mapping[str, float | int], step: int = 0) -> None:
        """Record figures at a step."""
        self._append("metrics", {"values": {name: float(value) for name, value in values.items()}, "step": step})

    def image(self, png: bytes, name: str) -> None:
        """Record a PNG as the artifact images/NAME.png."""
        self.bytes(png, f"images/{name}.png")

    def bytes(self, data: bytes, path: str) -> None:
        """Record bytes as an artifact at `path` (with folders) inside the run."""
        folder = str(Path(path).parent) if Path(path).parent != Path() else None
        self._append("artifact", {"name": Path(path).name, "folder": folder}, data)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file as an artifact."""
        self._append("artifact", {"name": path.name, "folder": folder}, path.absolute())

    def read_figures(self, name: str) -> dict[int, dict[str, float]]:
        """All figures recorded together with the figure `name`, by step; figures of earlier starts of the run are included."""
        logged = (record for record, _ in records(Path(self.folder)) if record.get("kind") == "metrics") if self.folder else ()
        return {record["step"]: record["values"] for record in logged if name in record["values"]}

    def flush(self, seconds: float | int = 30) -> bool:
        """Wait up to `seconds` for MLflow. Returns True when MLflow has every record made until now."""
        return not self.settle() and (not self.folder or sender.wait_until_sent(self.folder, seconds))

    def settle(self) -> int:
        """Try once more to write the records that a full disk refused. Returns how many of this process are still in memory."""
        return self._writer().retry() if self.folder else 0

    def close(self) -> None:
        """Close the spool's file. A later record opens it again."""
        if writer := _WRITERS.pop(self.folder, None):
            writer.close()

    def _append(self, kind: str, body: dict[str, Any], data: Content = None) -> None:
        if self.folder:
            self._writer().append(kind, body, data)

    def _writer(self) -> Writer:
        writer = _WRITERS.get(self.folder)
        return writer or _WRITERS.setdefault(self.folder, Writer(Path(self.folder)))


@dataclass(frozen=True)
class Place:
    """Where the spool of a run is. token: names the run and is the same at every start of the same work; "" is a new run."""

    root: Path
    token: str = ""

    def runs(self) -> list[Run]:
        """The runs of this token whose spools still exist, for any server. The most recently created comes last."""
        folders = [folder for folder in self.root.glob(f"{self.token}-*") if (folder / SPEC).exists()] if self.token else []
        return [Run(str(folder)) for folder in sorted(folders, key=lambda folder: (folder / SPEC).stat().st_mtime)]

    @classmethod
    def beside(cls, output: Location, tracking: TrackingConfig, token: str = "") -> Place:
        """The place of runs that fill this output."""
        name = hashlib.sha256(str(output).encode()).hexdigest()[:16]
        if tracking.spool:
            return cls(Path(tracking.spool).expanduser().absolute() / name, token)
        return cls(output.parent / f".{output.name}.tracking" if isinstance(output, Path) else _states() / "tracking" / name, token)


def resolve_uri(tracking: TrackingConfig, default_folder: Path) -> str:
    """The tracking URI with an absolute path. The default "" becomes SQLite in `default_folder`; "off" stays "off"."""
    if tracking.uri == "":
        return f"sqlite:///{default_folder.absolute()}/mlflow.db"
    _check(tracking.uri)
    if folder := _sqlite_folder(tracking.uri):  # the workers' directory is not ours
        name, mark, options = tracking.uri.removeprefix("sqlite:///").partition("?")
        return f"sqlite:///{folder / Path(name).name}{mark}{options}"
    return tracking.uri


def _check(uri: str) -> None:
    """Raise ConfigError for a URI that can never work. A server that does not answer yet is not an error."""
    scheme, separator, _ = uri.partition("://")
    if uri != "off" and (not separator or scheme.partition("+")[0] not in _SCHEMES):
        raise ConfigError(f"tracking.uri: expected sqlite:///FILE, http(s)://SERVER or off, got {redact(uri)!r}")


def _sqlite_folder(uri: str) -> Path | None:
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute().parent


@contextmanager
def start_run(
    uri: str,
    experiment: str,
    name: str,
    *,
    parent: Run | None = None,
    tags: Mapping[str, str] | None = None,
    place: Place | None = None,
    tracking: TrackingConfig | None = None,
) -> Iterator[Run]:
    """A Run that ends FINISHED, KILLED when the block was stopped, or FAILED when the block raises.

    The same `place` continues the same run in MLflow.

    tracking: how long the end waits, and how often the machine is sampled; None waits 30 s and samples nothing.
    """
    if uri == "off":
        yield Run()
        return
    _check(uri)
    if database := _sqlite_folder(uri):
        try:
            database.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"tracking.uri: cannot make {database} ({explained(error)}); give another URI, or off") from None
    load()
    tracking = tracking or TrackingConfig(system_metrics_s=0.0)
    place = place or Place((database or _states()) / ".tracking")
    run_tags = {"semantica.stage": name, "mlflow.source.git.commit": git_commit(), **(tags or {})}
    token = place.token or uuid.uuid4().hex
    folder = place.root / f"{token}-{hashlib.sha256(f'{uri} {experiment}'.encode()).hexdigest()[:8]}"
    send_what_is_left(place.root, but=folder)
    opened = _open_spool(folder, Spec(token, uri, experiment, name, run_tags, time.time_ns() // 10**6), parent)
    if opened is None:
        yield Run()
        return
    is_new, sending = opened
    run, status = Run(str(folder), uri), "FAILED"
    if not is_new:
        run._append("status", {"status": "RUNNING"})
        run.tags(run_tags)
    try:
        with sample_system(run.metrics, tracking.system_metrics_s, sending.spec.started_ms):
            yield run
        status = "FINISHED"
    except (Stopped, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        run._append("status", {"status": status})
        _end(run, sending, tracking.flush_s)


def _open_spool(folder: Path, spec: Spec, parent: Run | None) -> tuple[bool, Sender] | None:
    """Open the spool in `folder`, or create it. Returns (whether the run is new, its sender).

    An existing spool belongs to an earlier start of the run, and the run continues. Logs a warning and returns None when the disk
    does not take a spool.
    """
    try:
        if parent is not None and parent.folder:
            spec = replace(spec, parent=Spec.of(Path(parent.folder)))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = try_lock(folder)  # before the spec is written: a spool with a spec and without a lock has lost its process
        is_new = not (folder / SPEC).exists()
        if is_new:
            spec.keep(folder)
        return is_new, Sender(folder, lock=lock, keep=lambda status: status != "FINISHED")
    except (OSError, ValueError, TypeError) as error:
        log.warning("tracking: cannot write to %s (%s); nothing of %s is recorded", folder, error, spec.name)
        return None


def _end(run: Run, sending: Sender, seconds: float | int) -> None:
    """Wait up to `seconds` for the sender. Log how many records are left, and where."""
    folder = Path(run.folder)
    writer = _WRITERS.pop(run.folder)
    if num_held := writer.retry():
        log.error("tracking: %d records are lost: the disk of %s is full", num_held + writer.num_lost, folder)
    seconds += artifact_bytes(folder) / _BYTES_A_SECOND
    if not sending.close(seconds):
        log.warning(
            "tracking: %d records of %s are not at %s yet (%s); they are in %s and are sent while this process lives, "
            "or else by the next start with the same output",
            num_waiting(folder, Sent.of(folder)), sending.spec.name, redact(run.uri), sending.why(), folder,
        )  # fmt: skip
    writer.close()


def send_what_is_left(root: Path, *, done: str = "", but: Path | None = None, seconds: float | int = 0) -> None:
    """Send the records that earlier processes left in the spools under `root`, in the background; wait up to `seconds` for them.

    A run without an end becomes KILLED; the run whose token is `done` becomes FINISHED. The spool `but` is not touched, since its
    run continues.
    """
    sending: list[Sender] = []
    folders: list[Path] = []
    with suppress(FileNotFoundError):  # a sender that ends removes an empty root
        folders = sorted(root.iterdir())
    for folder in folders:
        if folder == but:
            continue
        if closing := sender.closing_sender(folder):  # it may be removing the folder now
            sending += closing
            continue
        if not (folder / SPEC).exists():
            continue
        try:
            lock = try_lock(folder)
            if lock is None:  # another process, or a run that is open here, sends it
                continue
            load()
            if last_status(folder) not in _ENDED:
                Writer(folder).append("status", {"status": "FINISHED" if done and folder.name.startswith(done) else "KILLED"})
            sending.append(Sender(folder, lock=lock, keep=lambda status: False))
        except (OSError, ValueError, TypeError) as error:
            log.warning("tracking: %s cannot be read (%s); the folder is left as it is", folder, error)
    deadline = time.monotonic() + seconds
    for one in sending:
        if not one.close(max(0.0, deadline - time.monotonic())) and seconds:
            log.warning("tracking: %s is not sent yet (%s)", one.folder, one.why())


def _states() -> Path:
    """The user's folder for the state of programs (XDG)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state").absolute() / "semantica"


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
