"""The spool of a run: a folder that keeps the records of the run, in order, until MLflow has them.

A stage only waits for `Writer.append`: one write at the end of `journal.jsonl`. The sender reads the records after an offset with
`records`, and `Sent` stores how far it got. Everything survives the death of every process; a power cut may lose the last records.
Layout, for one run:

    journal.jsonl    one JSON object per line, in the order of recording
    files/ID/NAME    the content of an artifact, deleted when MLflow has it
    spec.json        name, destination and parent of the run
    sent.json        how far the sender got
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from semantica.data import durable
from semantica.data.durable import write_atomically
from semantica.data.location import explained

log = logging.getLogger(__name__)

Content: TypeAlias = bytes | Path | None  # of an artifact: the bytes, or the file that holds them
JOURNAL, FILES, SPEC, SENT, LOCK = "journal.jsonl", "files", "spec.json", "sent.json", "lock"
_HELD_BYTES = 64 * 2**20  # the most that a process keeps in memory while the disk is full
_LINKED_BYTES = 8 * 2**20  # larger files (weights) are linked: never written in place, and slow to copy while a stage waits


@dataclass(frozen=True)
class Spec:
    """A run's description, written before any server knows the run. `token` names the run in MLflow (tag semantica.run)."""

    token: str
    uri: str
    experiment: str
    name: str
    tags: dict[str, str]
    started_ms: int
    parent: Spec | None = None

    def keep(self, folder: Path) -> None:
        """Write the spec into the spool."""
        write_atomically(folder / SPEC, json.dumps(asdict(self)).encode())

    @classmethod
    def of(cls, folder: Path) -> Spec:
        """The spec in the spool. Raises OSError, ValueError or TypeError when none can be read."""
        return cls._from(json.loads((folder / SPEC).read_bytes()))

    @classmethod
    def _from(cls, values: dict[str, Any]) -> Spec:
        parent = values.pop("parent", None)
        return cls(**values, parent=cls._from(parent) if parent else None)


@dataclass
class Sent:
    """How far the sender got. figures, files: bytes of the journal whose figures and artifacts MLflow has; then MLflow's ids."""

    figures: int = 0
    files: int = 0
    run_id: str = ""
    experiment_id: str = ""

    def keep(self, folder: Path) -> None:
        """Write the state into the spool."""
        write_atomically(folder / SENT, json.dumps(asdict(self)).encode())

    @classmethod
    def of(cls, folder: Path) -> Sent:
        """The state in the spool; without one, the start of the journal, since sending again changes nothing."""
        try:
            return cls(**json.loads((folder / SENT).read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls()

    @property
    def both(self) -> int:
        """Bytes at the start of the journal that both lanes have sent."""
        return min(self.figures, self.files)


def size(folder: Path) -> int:
    """Bytes in the journal; 0 without one."""
    try:
        return (folder / JOURNAL).stat().st_size
    except OSError:
        return 0


def artifact_bytes(folder: Path) -> int:
    """Bytes of the artifacts that MLflow does not have yet. The sender deletes them meanwhile, one by one."""
    total = 0
    for parent, _, names in os.walk(folder / FILES):  # which passes over a folder that is gone
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def records(folder: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """(record, offset behind it) of each complete line after `offset`; the record of a damaged line is {}."""
    try:
        stream = (folder / JOURNAL).open("rb")
    except FileNotFoundError:
        return
    with stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):  # being written now, or cut off by a crash; the next record will end the line
                return
            offset += len(line)
            record: Any = None
            if line.strip():
                with suppress(ValueError):
                    record = json.loads(line)
            yield record if isinstance(record, dict) else {}, offset


def last_status(folder: Path) -> str:
    """The last recorded status; "" without one."""
    return next((record["status"] for record, _ in reversed(list(records(folder))) if record.get("kind") == "status"), "")


def num_waiting(folder: Path, sent: Sent) -> int:
    """How many records MLflow does not have yet."""
    waiting = (
        bool(record) and end > (sent.files if record["kind"] == "artifact" else sent.figures)
        for record, end in records(folder, sent.both)
    )
    return sum(waiting)


def try_lock(folder: Path) -> int | None:
    """Lock the spool until the returned descriptor is closed or the process ends. None when another process holds the lock."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    if durable.try_lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


class Writer:
    """Appends to the spool of one run, from any thread; several processes may share it. Disk errors never raise.

    Records that a full disk refuses are held in memory, in order, and written with the next record that fits.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_lost = 0
        self._lock = threading.Lock()
        self._held: deque[tuple[dict[str, Any], Content]] = deque()
        self._held_bytes = 0
        self._last_ms = 0
        self._failing = False
        self._descriptor: int | None = None

    def append(self, kind: str, body: dict[str, Any], data: Content = None) -> None:
        """Append a record, with `data` the content of an artifact. No two records of a process have the same millisecond."""
        with self._lock:
            self._last_ms = max(self._last_ms + 1, time.time_ns() // 10**6)
            self._held.append(({"kind": kind, "ms": self._last_ms, **body}, data))
            self._held_bytes += _weight(data)
            self._write_held()

    def retry(self) -> int:
        """Try once more to write the held records. Returns how many are still not on the disk."""
        with self._lock:
            self._write_held()
            return len(self._held)

    def close(self) -> None:
        """Close the file; a later record opens it again."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _write_held(self) -> None:
        try:
            while self._held:
                self._write(*self._held[0])
                self._held_bytes -= _weight(self._held.popleft()[1])
        except OSError as error:
            self._failed(error)
        else:
            if self._failing:
                log.warning("tracking: %s can be written to again; %d records are lost", self.folder, self.num_lost)
            self._failing = False

    def _failed(self, error: OSError) -> None:
        if not self._failing:
            log.error("tracking: cannot write to %s (%s); records are kept in memory meanwhile", self.folder, explained(error))
        self._failing = True
        while self._held_bytes > _HELD_BYTES:
            self._held_bytes -= _weight(self._held.popleft()[1])
            self.num_lost += 1

    def _write(self, record: dict[str, Any], data: Content) -> None:
        if data is not None:
            record = {**record, "id": uuid.uuid4().hex}
            path = self.folder / FILES / record["id"] / record["name"]
            (self.folder / FILES).mkdir(exist_ok=True)
            path.parent.mkdir()
            try:
                if not _put(data, path):
                    log.warning("tracking: %s is not there any more and is not recorded", data)
                    return
            except OSError:
                shutil.rmtree(path.parent, ignore_errors=True)
                raise
        if self._descriptor is None:
            self._descriptor = os.open(self.folder / JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        # The leading line break ends a line that another process or a full disk may have left half written.
        line = f"\n{json.dumps(record)}\n".encode()
        if os.write(self._descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _weight(data: Content) -> int:
    return 1024 + (len(data) if isinstance(data, bytes) else 0)


def _put(data: bytes | Path, path: Path) -> bool:
    """Put the content at `path`; a large file is linked if possible. Returns False when the source file is gone."""
    if isinstance(data, bytes):
        path.write_bytes(data)
        return True
    try:
        if data.stat().st_size > _LINKED_BYTES:
            with suppress(OSError):  # another file system, or one without links
                os.link(data, path)
                return True
        shutil.copyfile(data, path)
    except FileNotFoundError:
        return False
    return True
