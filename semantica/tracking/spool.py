"""The spool of a run: a folder that holds, in order, what the run records until MLflow has it.

`Writer.append` is all that a stage ever waits for: one write at the end of `journal.jsonl`. `records` gives the sender what comes
after an offset, and `Sent` is how far it got. Everything survives the death of every process; after a power cut the last records
may be missing. Layout, for one run:

    journal.jsonl    a JSON object a line, in the order of recording
    files/ID/NAME    what the journal's artifacts hold, deleted when MLflow has it
    spec.json        what the run is called, where it goes
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

Content: TypeAlias = bytes | Path | None  # of an artifact: itself, or the file that has it
JOURNAL, FILES, SPEC, SENT, LOCK = "journal.jsonl", "files", "spec.json", "sent.json", "lock"
_HELD_BYTES = 64 * 2**20  # what a full disk may make a process keep in memory
_LINKED_BYTES = 8 * 2**20  # weights: never written in place, and too large to copy while a stage waits


@dataclass(frozen=True)
class Spec:
    """What a run is, before any server has heard of it. `token` names it in MLflow (tag semantica.run): it is made there once."""

    token: str
    uri: str
    experiment: str
    name: str
    tags: dict[str, str]
    started_ms: int
    parent: Spec | None = None

    def keep(self, folder: Path) -> None:
        """Write it into the spool."""
        write_atomically(folder / SPEC, json.dumps(asdict(self)).encode())

    @classmethod
    def of(cls, folder: Path) -> Spec:
        """The spec in the spool. Raises OSError, ValueError or TypeError when there is none that can be read."""
        return cls._from(json.loads((folder / SPEC).read_bytes()))

    @classmethod
    def _from(cls, values: dict[str, Any]) -> Spec:
        parent = values.pop("parent", None)
        return cls(**values, parent=cls._from(parent) if parent else None)


@dataclass
class Sent:
    """How far the sender got: bytes of the journal whose figures, and whose artifacts, MLflow has; its names for the run."""

    figures: int = 0
    files: int = 0
    run_id: str = ""
    experiment_id: str = ""

    def keep(self, folder: Path) -> None:
        """Write it into the spool."""
        write_atomically(folder / SENT, json.dumps(asdict(self)).encode())

    @classmethod
    def of(cls, folder: Path) -> Sent:
        """What the spool says, or the beginning: to send something again changes nothing."""
        try:
            return cls(**json.loads((folder / SENT).read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls()

    @property
    def both(self) -> int:
        """Bytes of the journal of which nothing is to be sent."""
        return min(self.figures, self.files)


def size(folder: Path) -> int:
    """Bytes in the journal; 0 without one."""
    try:
        return (folder / JOURNAL).stat().st_size
    except OSError:
        return 0


def records(folder: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """(record, offset behind it) of the whole lines from the offset on; {} for one that a crash cut off."""
    try:
        stream = (folder / JOURNAL).open("rb")
    except FileNotFoundError:
        return
    with stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):  # being written at this moment, or cut off: then the next record ends it
                return
            offset += len(line)
            record: Any = None
            if line.strip():
                with suppress(ValueError):
                    record = json.loads(line)
            yield record if isinstance(record, dict) else {}, offset


def last_status(folder: Path) -> str:
    """The last status that was recorded; "" without one."""
    return next((record["status"] for record, _ in reversed(list(records(folder))) if record.get("kind") == "status"), "")


def num_waiting(folder: Path, sent: Sent) -> int:
    """How many records MLflow does not have yet."""
    waiting = (
        bool(record) and end > (sent.files if record["kind"] == "artifact" else sent.figures)
        for record, end in records(folder, sent.both)
    )
    return sum(waiting)


def try_lock(folder: Path) -> int | None:
    """The descriptor that holds the spool for this process alone, until it is closed or the process ends; None: another has it."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    if durable.try_lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


class Writer:
    """Appends to the spool of one run, from any thread; several processes may write to one spool. Never raises for the disk.

    What a full disk refuses is held in memory, in order, and written with the next record for which there is room.
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
        """Record a thing, with the content of an artifact. Every record has a millisecond of its own in this process."""
        with self._lock:
            self._last_ms = max(self._last_ms + 1, time.time_ns() // 10**6)
            self._held.append(({"kind": kind, "ms": self._last_ms, **body}, data))
            self._held_bytes += _weight(data)
            self._write_held()

    def retry(self) -> int:
        """How many records are still not on the disk, after one more attempt."""
        with self._lock:
            self._write_held()
            return len(self._held)

    def close(self) -> None:
        """Give the file back; a later record opens it again."""
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
            log.error("tracking: cannot write to %s (%s); figures are kept in memory meanwhile", self.folder, explained(error))
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
        # A line break before it, too: it ends what another process or a full disk may have left half written.
        line = f"\n{json.dumps(record)}\n".encode()
        if os.write(self._descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _weight(data: Content) -> int:
    return 1024 + (len(data) if isinstance(data, bytes) else 0)


def _put(data: bytes | Path, path: Path) -> bool:
    """Put the content at the path; False when its source is gone. A large file is linked where that works."""
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
