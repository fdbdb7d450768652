"""Files and folders that are on the disk whole or not there, also after a crash or a power cut. Bytes in; sizes and hashes out.

A folder is written under a temporary name beside its own, every file synced, then the folder, and then it is renamed. Two marks
on a temporary folder say that somebody writes it: the machine in its name, and a lock that goes when the process does.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 4 << 20  # bytes that are hashed and written in turn
_STALE_SECONDS = 24 * 3600.0  # [C]


@dataclass(frozen=True)
class Written:
    """What a file holds, told from the bytes that were handed over, not from what the disk gives back."""

    num_bytes: int
    sha256: str


def write_file(path: Path, data: Iterable[bytes | memoryview]) -> Written:
    """Size and hash of a new file, which is on the disk when this returns. Raises OSError, FileExistsError among them."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for buffer in data:
            whole = memoryview(buffer)
            for start in range(0, len(whole), _CHUNK):
                chunk = whole[start : start + _CHUNK]
                digest.update(chunk)
                size += len(chunk)
                while chunk:  # the kernel may take a part
                    chunk = chunk[os.write(descriptor, chunk) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Written(size, digest.hexdigest())


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def new_attempt() -> str:
    """A name for one try to write, which no other try has: this machine, and chance."""
    return f"{_host()}.{uuid.uuid4().hex[:12]}"


def partial_of(folder: Path, attempt: str) -> Path:
    """Where a folder is written until it is whole."""
    return folder.with_name(f".{folder.name}.{attempt}.partial")


@contextmanager
def appearing(folder: Path, attempt: str) -> Iterator[Path]:
    """A temporary folder; when the block ends without an exception it is `folder`, whole. After an exception it is removed.

    `folder` may be there, empty. Raises OSError when it is there with something in it.
    """
    partial = partial_of(folder, attempt)
    partial.mkdir(parents=True, exist_ok=True)  # another worker may have been first
    try:
        with marked(partial):
            yield partial
            sync_folder(partial)
            os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(folder.parent)


@contextmanager
def marked(partial: Path) -> Iterator[None]:
    """While the block runs, `remove_abandoned` on this machine leaves the folder alone. Several may mark one folder."""
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is never seen in part: a crash on the way leaves a temporary name."""
    partial = partial_of(folder, new_attempt())
    os.rename(folder, partial)
    sync_folder(folder.parent)
    shutil.rmtree(partial)


def remove_abandoned(parent: Path, stem: str) -> list[Path]:
    """The temporary folders of names that start with `stem` that were removed: nobody writes them any more."""
    names = [p for p in parent.iterdir() if p.name.startswith(f".{stem}") and p.suffix == ".partial"]
    found = [p for p in names if _abandoned(p)]
    for partial in found:
        shutil.rmtree(partial, ignore_errors=True)
    return found


def _abandoned(partial: Path) -> bool:
    """True when its writer was of this machine and is gone. What another machine writes counts as in use for a day."""
    try:
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # gone, or no folder
        return False
    try:
        free = _lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)
    if free is not None and partial.name.split(".")[-3] == _host():
        return free
    try:
        changed = max(p.stat().st_mtime for p in (partial, *partial.iterdir()))
    except OSError:  # it changes right now
        return False
    return free is not False and time.time() - changed > _STALE_SECONDS


def _lock(descriptor: int, kind: int) -> bool | None:
    """True when the lock was taken, False when another holds it, None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
