"""The thread that takes what a run records from its spool to MLflow, however often it must try.

Figures and artifacts are two lanes with waits of their own: an artifact store that fails does not hold back figures. Within a lane
the order is that of the journal. A lane moves on only when MLflow has said yes, or that it never will: then the figure is written
to `refused.jsonl` beside the spool, and said. A spool has one sender at a time, in whichever process.
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
_HOPELESS = 4  # attempts in a row, over about three seconds, after which the end of a run does not wait for more
_LANES = ("figures", "files")
_FIGURES = frozenset({"metrics", "params", "tags"})
_SENDERS: dict[str, Sender] = {}  # of this process, by folder
_IDS: dict[str, tuple[str, str]] = {}  # (experiment id, run id) of runs of this process, whose spool may be gone

Records = Iterator[tuple[dict[str, Any], int]]


def ids(folder: str) -> tuple[str, str]:
    """(experiment id, run id) of the run of a spool; empty while it has not been made."""
    if folder not in _IDS:
        sent = Sent.of(Path(folder))
        return sent.experiment_id, sent.run_id
    return _IDS[folder]


def wait_until_sent(folder: str, seconds: float | int) -> bool:
    """Whether all that is in the spool now has been sent, by any process, before so many seconds have passed."""
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
    """The sender of this process that has the spool of a run that has ended, if there is one."""
    found = _SENDERS.get(str(folder))
    return [found] if found is not None and found.is_closing() else []


class Sender:
    """Sends one spool until it is told that nothing more comes, and all is sent.

    lock: the spool's; None waits for whoever has it. keep: whether the spool stays for the next start, given the last status.
    """

    def __init__(self, folder: Path, *, lock: int | None, keep: Callable[[str], bool]) -> None:
        self.folder, self.spec, self.sent, self.last_status = folder, Spec.of(folder), Sent.of(folder), ""
        self._lock, self._keep = lock, keep
        self._server = ServerRun(self.spec)
        self._closing, self._wake = threading.Event(), threading.Event()
        self._failures, self._due = dict.fromkeys(_LANES, 0), dict.fromkeys(_LANES, 0.0)
        self._trouble: dict[str, str] = {}  # the last error of a lane, while it stands
        self._thread = threading.Thread(target=self._serve, name="tracking", daemon=True)
        _SENDERS[str(folder)] = self
        self._thread.start()

    def why(self) -> str:
        """What keeps it from sending, in words."""
        return "; ".join(self._trouble.values()) or "it takes longer"

    def try_now(self) -> None:
        """Do not wait for the next attempt."""
        self._failures, self._due = dict.fromkeys(_LANES, 0), dict.fromkeys(_LANES, 0.0)
        self._wake.set()

    def is_closing(self) -> bool:
        """Whether nothing more comes."""
        return self._closing.is_set()

    def close(self, seconds: float | int = 0) -> bool:
        """Nothing more comes: whether all is sent before so many seconds have passed, or some attempts in a row have failed.

        The thread goes on where it is not.
        """
        self._closing.set()
        self.try_now()
        deadline = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < deadline and max(self._failures.values()) < _HOPELESS:
            self._thread.join(min(0.1, max(0.0, deadline - time.monotonic())))
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while self._lock is None:  # another sender, of a process that ends, has the spool
            time.sleep(_LOOK_S)
            self._lock = try_lock(self.folder)
        self.sent = Sent.of(self.folder)
        try:
            self._send_all()
            if not self._keep(self.last_status):
                shutil.rmtree(self.folder, ignore_errors=True)
                with suppress(OSError):
                    self.folder.parent.rmdir()  # there is no other spool in it
        finally:
            if _SENDERS.get(str(self.folder)) is self:
                del _SENDERS[str(self.folder)]
            os.close(self._lock)

    def _send_all(self) -> None:
        while True:
            closing = self._closing.is_set()  # read before the journal: what was recorded before it is seen
            moved = self._move("figures", self._send_figures) | self._move("files", self._send_file)
            if closing and self.sent.both >= size(self.folder):
                return
            if not moved:
                self._wake.wait(_LOOK_S)
                self._wake.clear()

    def _move(self, lane: str, send: Callable[[Records], int]) -> bool:
        """Send the next piece of a lane; whether there was one, and it went."""
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
        with suppress(OSError):  # a full disk: after a crash it would be sent again, which changes nothing
            self.sent.keep(self.folder)
        if self._trouble.pop(lane, ""):
            log.warning("tracking: %s takes the %s of %s again", redact(self.spec.uri), lane, self.spec.name)
        self._failures[lane] = 0
        return bool(getattr(self.sent, lane) > start)

    def _is_open(self) -> bool:
        """Find the run in MLflow or make it; False when all must be sent again: somebody deleted it, or the server lost it."""
        if self._server.run_id:
            return True
        is_new = self._server.open()
        self.sent.experiment_id, self.sent.run_id = self._server.experiment_id, self._server.run_id
        _IDS[str(self.folder)] = self.sent.experiment_id, self.sent.run_id
        again = is_new and bool(self.sent.figures or self.sent.files)
        if not is_new and not (self.sent.figures or self.sent.files):  # it was finished, or another machine began it
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
        self._due[lane] = time.monotonic() + wait * (0.5 + random.random() / 2)  # many runs, not all at once

    def _sync(self) -> None:
        """What must wait is brought to the disk, where a power cut does not reach it."""
        with suppress(OSError):
            descriptor = os.open(self.folder / JOURNAL, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def _send_figures(self, journal: Records) -> int:
        """Send one request of figures, or one status; returns the offset behind them."""
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
        """Send the next artifact, if there is one; returns the offset behind it."""
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
