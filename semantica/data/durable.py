"""Files and folders that are there whole or not at all, also after a crash or a power cut; and the lock of a file system.

Datasets, checkpoints, releases, the tracking spool and the results of a sweep are all written by this module. Any `Location` takes
whole files: a disk by a temporary name, a sync and a rename, an object store by one request. Folders are for a disk: one is written
under a temporary name beside its own, every file synced, then the folder, and then it is renamed. Two marks on a temporary folder
say that a process still writes it: the machine in its name, and a lock that ends with the process.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from semantica.data.location import Location

_CHUNK = 4 << 20  # bytes that are hashed and written in turn
_STALE_SECONDS = 24 * 3600.0  # [C]


def _partial(path: Path) -> Path:
    # Different for each writer: threads share a process id, and processes of machines that share a disk may.
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def write_atomically(path: Location, data: bytes) -> None:
    """Write a file so that it appears whole or not at all, also after a crash."""
    if not isinstance(path, Path):
        path.fs.pipe_file(path.path, data)  # one PUT, or a multipart upload that counts when it is completed
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # still there only when something above failed


@contextmanager
def atomic_file(path: Location) -> Iterator[Path]:
    """A local file to write. When the block ends without an exception, it appears at `path`, whole."""
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(path)
    else:
        partial = Path(tempfile.mkdtemp()) / path.name
    try:
        yield partial
        if isinstance(path, Path):
            with partial.open("rb") as stream:  # on disk before anything refers to it
                os.fsync(stream.fileno())
            partial.replace(path)
        else:
            path.fs.put_file(str(partial), path.path)
    finally:
        if isinstance(path, Path):
            partial.unlink(missing_ok=True)
        else:
            shutil.rmtree(partial.parent, ignore_errors=True)


def create(path: Location, data: bytes) -> bool:
    """Write the file if there is none. Returns False if there is one; of two writers at the same moment exactly one gets True."""
    try:
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as stream:
                stream.write(data)
        else:
            path.fs.pipe_file(path.path, data, mode="create")  # S3: If-None-Match; GCS: ifGenerationMatch=0
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class Written:
    """Size and hash of a file, computed from the bytes handed over, not from what the disk gives back."""

    num_bytes: int
    sha256: str


def write_file(path: Path, data: Iterable[bytes | memoryview]) -> Written:
    """Write a new file; it is on the disk when this returns. Raises OSError, such as FileExistsError."""
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
    """Bring the list of names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def new_attempt() -> str:
    """A name for one attempt to write that no other attempt has: this machine and a random number."""
    return f"{_host()}.{uuid.uuid4().hex[:12]}"


def partial_of(folder: Path, attempt: str) -> Path:
    """Where a folder is written until it is whole."""
    return folder.with_name(f".{folder.name}.{attempt}.partial")


@contextmanager
def appearing(folder: Path, attempt: str) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends. After an exception it is removed.

    `folder` may exist if it is empty. Raises OSError when it holds something.
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
    """A block in which `remove_abandoned` on this machine leaves the folder alone. Several processes may mark one folder."""
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try_lock(descriptor, shared=True)
        yield
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is never seen in part: a crash halfway leaves a temporary name."""
    partial = partial_of(folder, new_attempt())
    os.rename(folder, partial)
    sync_folder(folder.parent)
    shutil.rmtree(partial)


def remove_abandoned(parent: Path, stem: str) -> list[Path]:
    """Remove the temporary folders whose name starts with `stem` and that no process writes any more. Returns them."""
    names = [p for p in parent.iterdir() if p.name.startswith(f".{stem}") and p.suffix == ".partial"]
    abandoned = [p for p in names if _abandoned(p)]
    for partial in abandoned:
        shutil.rmtree(partial, ignore_errors=True)
    return abandoned


def _abandoned(partial: Path) -> bool:
    """Whether its writer has ended. A folder of another machine counts as in use for a day after its last change."""
    try:
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # gone, or no folder
        return False
    try:
        free = try_lock(descriptor)
    finally:
        os.close(descriptor)
    if free is not None and partial.name.split(".")[-3] == _host():
        return free
    try:
        changed = max(p.stat().st_mtime for p in (partial, *partial.iterdir()))
    except OSError:  # it changes at this moment
        return False
    return free is not False and time.time() - changed > _STALE_SECONDS


def try_lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file or folder until it is closed or the process ends, without waiting.

    True when the lock is taken, False when another process holds it, None where the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
