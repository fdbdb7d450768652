"""One writer per output: a lease file beside the folder, renewed while its owner lives, taken over when the owner is gone.

Leases are numbered files, `.NAME.lease-000007`. The process that creates the next number holds the output: creating a file is the
one operation that succeeds for exactly one of two processes on a local disk, on S3 and on GCS. A lease ends when its owner removes
it, when the owner's process no longer exists (same machine), or when it was not renewed for `LEASE_S`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import psutil

from semantica.data.durable import create, write_atomically
from semantica.data.location import Location
from semantica.errors import DataError

log = logging.getLogger(__name__)

_LOST: set[str] = set()  # outputs of this process that another process has taken over

RENEW_S = 15.0
LEASE_S = 90.0  # five renewals may fail, and clocks of two machines may differ by some seconds


@dataclass(frozen=True)
class Owner:
    """The process that holds a lease, and when it last renewed it (seconds since 1970)."""

    host: str
    pid: int
    started: float  # of the process: the system may give its number to another one later
    renewed: float

    @classmethod
    def this_process(cls) -> Owner:
        """The calling process, now."""
        return cls(_host(), os.getpid(), psutil.Process().create_time(), time.time())

    def is_gone(self) -> bool:
        """Whether the process has ended; on another machine, whether it has not renewed for `LEASE_S`."""
        if self.host != _host():
            return time.time() - self.renewed > LEASE_S
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) > 1.0)
        except psutil.NoSuchProcess:
            return True


def _host() -> str:
    """This machine, this boot and this namespace of process ids: two containers may share a host name but not their processes."""
    marks = [Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")]
    boot = marks[0].read_text().strip()[:8] if marks[0].exists() else ""
    space = os.readlink(marks[1]) if marks[1].exists() else ""
    return " ".join(part for part in (socket.gethostname(), boot, space) if part)


def check(folder: Location, what: str) -> None:
    """Raise DataError if this process held `folder` and another process took it over."""
    if str(folder) in _LOST:
        raise DataError(
            f"{what}: {folder} was taken over by another process, since this one did not renew its lease; end one of the two"
        )


@contextmanager
def held(folder: Location, what: str) -> Iterator[None]:
    """Hold the output `folder` during the block. Raises DataError, naming the owner, when another process holds it."""
    path = _acquire(folder, what)
    stop = threading.Event()
    _LOST.discard(str(folder))
    thread = threading.Thread(target=_renew, args=(path, str(folder), stop), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        path.unlink(missing_ok=True)


def is_held(folder: Location) -> bool:
    """Whether a living process holds `folder`, as far as this machine can tell."""
    owners = [_read(path) for path in _leases(folder.parent, f".{folder.name}.lease-")]
    return any(owner is not None and not owner.is_gone() for owner in owners)


def _acquire(folder: Location, what: str) -> Location:
    prefix = f".{folder.name}.lease-"
    number = 0
    for path in _leases(folder.parent, prefix):
        number = int(path.name.removeprefix(prefix)) + 1
        _refuse_living(path, folder, what)
        path.unlink(missing_ok=True)
    own = folder.parent / f"{prefix}{number:06d}"
    if not create(own, json.dumps(asdict(Owner.this_process())).encode()):
        raise DataError(
            f"{what}: another process started to write {folder} at the same moment; wait for it, or choose another folder"
        )
    try:
        for path in _leases(folder.parent, prefix):  # again: another process may have started at another number, after a release
            if path.name != own.name:
                _refuse_living(path, folder, what)
    except DataError:
        own.unlink(missing_ok=True)
        raise
    return own


def _refuse_living(path: Location, folder: Location, what: str) -> None:
    owner = _read(path)
    if owner is not None and not owner.is_gone():
        raise DataError(
            f"{what}: {folder} is being written by process {owner.pid} on {owner.host.partition(' ')[0]}; wait for it, or choose "
            f"another folder (a lease without a living owner ends after {LEASE_S:.0f} s)"
        )


def _leases(parent: Location, prefix: str) -> list[Location]:
    if not parent.exists():
        return []
    return sorted((p for p in cast("Iterator[Location]", parent.iterdir()) if p.name.startswith(prefix)), key=lambda p: p.name)


def _read(path: Location) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_bytes()))
    except FileNotFoundError:  # released since it was listed
        return None
    except (ValueError, TypeError):
        # Half written at this moment, or damaged: it counts as held until it is too old.
        return Owner("unknown", 0, 0.0, path.stat().st_mtime)


def _taken_over(path: Location) -> bool:
    """Whether the lease is gone, or a later one exists: a renewal at the moment of the takeover creates the file again."""
    prefix, _, _ = path.name.rpartition("-")
    others = [p.name for p in _leases(path.parent, f"{prefix}-")]
    return path.name not in others or others[-1] > path.name


def _renew(path: Location, folder: str, stop: threading.Event) -> None:
    while not stop.wait(RENEW_S):
        try:
            if _taken_over(path):
                _LOST.add(folder)
                log.error("lease: %s is gone: another process has taken this output over; stop one of the two", path)
                return
            write_atomically(path, json.dumps(asdict(Owner.this_process())).encode())
        except Exception as error:  # noqa: BLE001 - the clouds' libraries raise their own kinds; the next renewal may succeed
            log.warning("lease: %s could not be renewed (%s)", path, error)
