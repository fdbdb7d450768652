"""The thread that sends the records of a run from its spool to MLflow, and retries until MLflow has them.

Figures and artifacts are two lanes with separate waits: an artifact store that fails does not hold back figures. Within a lane
the order is that of the journal. A lane moves on when MLflow has accepted a record, or has refused it for good. A refused figure
is written to `refused.jsonl` beside the spool and logged. A spool has one sender at a time, over all processes.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from semantica.tracking.server import Batch, ServerRun, redact
from semantica.tracking.spool import FILES, JOURNAL, Sent, Spec, records, size, try_lock

log = logging.getLogger(__name__)

_LOOK_S = 0.25  # how often the journal is looked at
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0  # between attempts; each wait is twice the one before
_HOPELESS = 4  # failed attempts in a row, over about three seconds, after which the end of a run stops waiting
_LANES = ("figures", "files")
_FIGURES = frozenset({"metrics", "params", "tags"})
_SENDERS: dict[str, Sender] = {}  # of this process, by folder
_IDS: dict[str, tuple[str, str]] = {}  # (experiment id, run id) of this process's runs; their spools may be gone

Records = Iterator[tuple[dict[str, Any], int]]


def ids(folder: str) -> tuple[str, str]:
    """(experiment id, run id) of the run of a spool; empty strings until MLflow has the run."""
    if folder not in _IDS:
        sent = Sent.of(Path(folder))
        return sent.experiment_id, sent.run_id
    return _IDS[folder]


def wait_until_sent(folder: str, seconds: float | int) -> bool:
    """Wait up to `seconds`. Returns True when any process has sent every record that is in the spool now."""
    place, deadline = Path(folder), time.monotonic() + seconds
    end = size(place)
    if sender := _SENDERS.get(folder):
        sender.try_now()
    while max(Sent.of(place).both, sender.sent.both if sender else 0) < end <= size(place):  # gone when all is sent
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def closing_sender(folder: Path) -> list[Sender]:
    """This process's sender of the spool, as a list; empty when there is none or its run has not ended."""
    sender = _SENDERS.get(str(folder))
    return [sender] if sender is not None and sender.is_closing() else []


class Sender:
    """Sends one spool until `close` was called and every record is sent.

    lock: the spool's; None waits until the other process releases it. keep: whether the spool stays for the next start, given the
    last status.
    """

    def __init__(self, folder: Path, *, lock: int | None, keep: Callable[[str], bool]) -> None:
        self.folder, self.spec, self.sent, self.last_status = folder, Spec.of(folder), Sent.of(folder), ""
        self._lock, self._keep = lock, keep
        self._server = ServerRun(self.spec)
        self._closing, self._wake = threading.Event(), threading.Event()
        self._failures, self._due = dict.fromkeys(_LANES, 0), dict.fromkeys(_LANES, 0.0)
        self._trouble: dict[str, str] = {}  # the last error of each lane that is failing now
        self._thread = threading.Thread(target=self._serve, name="tracking", daemon=True)
        _SENDERS[str(folder)] = self
        self._thread.start()

    def why(self) -> str:
        """Why it has not sent everything, in words."""
        return "; ".join(self._trouble.values()) or "it takes longer"

    def try_now(self) -> None:
        """Make the next attempt now."""
        self._failures, self._due = dict.fromkeys(_LANES, 0), dict.fromkeys(_LANES, 0.0)
        self._wake.set()

    def is_closing(self) -> bool:
        """Whether `close` was called: no more records come."""
        return self._closing.is_set()

    def close(self, seconds: float | int = 0) -> bool:
        """Say that no more records come. Returns True when all are sent.

        Waits up to `seconds`, or until several attempts in a row have failed. The thread continues to send what is left.
        """
        self._closing.set()
        self.try_now()
        deadline = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < deadline and max(self._failures.values()) < _HOPELESS:
            self._thread.join(min(0.1, max(0.0, deadline - time.monotonic())))
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while self._lock is None:  # the sender of another process, which is ending, holds the spool
            time.sleep(_LOOK_S)
            self._lock = try_lock(self.folder)
        self.sent = Sent.of(self.folder)
        try:
            self._send_all()
            if not self._keep(self.last_status):
                shutil.rmtree(self.folder, ignore_errors=True)
                with suppress(OSError):
                    self.folder.parent.rmdir()  # succeeds only when no other spool is in it
        finally:
            if _SENDERS.get(str(self.folder)) is self:
                del _SENDERS[str(self.folder)]
            os.close(self._lock)

    def _send_all(self) -> None:
        while True:
            closing = self._closing.is_set()  # read before the journal, so that no record made before `close` is missed
            moved = self._move("figures", self._send_figures) | self._move("files", self._send_file)
            if closing and self.sent.both >= size(self.folder):
                return
            if not moved:
                self._wake.wait(_LOOK_S)
                self._wake.clear()

    def _move(self, lane: str, send: Callable[[Records], int]) -> bool:
        """Send the next piece of a lane. Returns True if there was one and it arrived."""
        if time.monotonic() < self._due[lane]:
            return False
        start: int = getattr(self.sent, lane)
        if start >= size(self.folder):
            return False
        try:
            setattr(self.sent, lane, send(records(self.folder, start)))
        except Exception as error:  # noqa: BLE001 - MLflow, requests, SQLAlchemy and artifact stores raise their own kinds
            self._failed(lane, error)
            return False
        with suppress(OSError):  # a full disk: after a crash the records are sent again, which changes nothing
            self.sent.keep(self.folder)
        if self._trouble.pop(lane, ""):
            log.warning("tracking: %s takes the %s of %s again", redact(self.spec.uri), lane, self.spec.name)
        self._failures[lane] = 0
        return bool(getattr(self.sent, lane) > start)

    def _is_open(self) -> bool:
        """Find the run in MLflow or create it. Returns False when the run was lost or deleted, so all must be sent again."""
        if self._server.run_id:
            return True
        is_first = not self.sent.run_id  # of this spool: another one, or another machine, may have filled and finished the run
        is_new = self._server.open()
        self.sent.experiment_id, self.sent.run_id = self._server.experiment_id, self._server.run_id
        _IDS[str(self.folder)] = self.sent.experiment_id, self.sent.run_id
        again = is_new and bool(self.sent.figures or self.sent.files)
        if is_first and not is_new:
            self._server.status("RUNNING", 0)
            self._server.send(Batch(tags=dict(self.spec.tags)))
        if again:
            self.sent.figures = self.sent.files = 0
        return not again

    def _failed(self, lane: str, error: Exception) -> None:
        if lane not in self._trouble:
            log.warning(
                "tracking: %s does not take the %s of %s (%s); they wait in %s",
                redact(self.spec.uri), lane, self.spec.name, redact(error), self.folder,
            )  # fmt: skip
            self._sync()
        self._trouble[lane] = redact(error)
        wait = min(_FIRST_WAIT_S * 2 ** self._failures[lane], _LONGEST_WAIT_S)
        self._failures[lane] += 1
        self._due[lane] = time.monotonic() + wait * (0.5 + random.random() / 2)  # random, so that many runs do not retry at once

    def _sync(self) -> None:
        """Sync the journal to the disk, so that a power cut does not lose records that must wait."""
        with suppress(OSError):
            descriptor = os.open(self.folder / JOURNAL, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def _send_figures(self, journal: Records) -> int:
        """Send one request of figures, or one status. Returns the offset behind them."""
        batch, end = Batch(), self.sent.figures
        for record, behind in journal:
            kind = record.get("kind")
            if kind in _FIGURES and not batch.takes(record):
                break
            if kind == "status":
                if batch != Batch():
                    break
                if not self._is_open():
                    return 0
                self._server.status(record["status"], record["ms"])
                self.last_status = record["status"]
                return behind
            end = behind
        if batch != Batch():
            if not self._is_open():
                return 0
            for refused, why in self._server.send(batch):
                self._refuse(refused, why)
        return end

    def _refuse(self, batch: Batch, why: str) -> None:
        log.warning("tracking: some figures of run %s are not recorded: %s", self._server.run_id, why)
        line = json.dumps({"run_id": self._server.run_id, "why": why, "metrics": batch.metrics, "params": batch.params})
        with suppress(OSError), (self.folder.parent / "refused.jsonl").open("a") as stream:
            stream.write(line + "\n")

    def _send_file(self, journal: Records) -> int:
        """Send the next artifact, if there is one. Returns the offset behind it."""
        end = self.sent.files
        for record, behind in journal:
            end = behind
            if record.get("kind") == "artifact":
                path = self.folder / FILES / record["id"] / record["name"]
                if path.exists():  # else it was sent before a crash
                    if not self._is_open():
                        return 0
                    self._server.artifact(path, record["folder"])
                    shutil.rmtree(path.parent, ignore_errors=True)
                break
        return end
