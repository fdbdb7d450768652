"""Storage: whether the place of an output guarantees what the stages need.

A file is replaced as a whole; fsync writes to the disk; of two processes that create a file one succeeds; there is space. Each is
tried in a scratch folder, which is removed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

from semantica.data.durable import create, write_atomically
from semantica.data.location import Location, explained, location, remove_tree
from semantica.doctor.finding import Finding, fail, ok, warn
from semantica.errors import ConfigError

_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "fuse.ceph", "gpfs", "beegfs", "fuse.gcsfuse", "fuse.mountpoint-s3"}
)
_BROKEN_FUSE = frozenset({"fuse.gcsfuse", "fuse.mountpoint-s3", "fuse.s3fs"})  # no rename, or none that is atomic
_WANTED_BYTES, _LEAST_BYTES = 20e9, 2e9
_WATCHED_BYTES = 65_536


def check_storage(where: str, *, address: str | None = None) -> Iterator[Finding]:
    """Findings about the folder or URI of an output. address: of the cluster whose nodes will write there; None for a local Ray."""
    try:
        place = location(where)
    except ConfigError as error:
        yield fail("storage.place", str(error), "name a folder, or s3://BUCKET/..., gs://BUCKET/...")
        return
    if isinstance(place, Path):
        yield from _folder(place, address)
    else:
        yield from _object_store(place)


def _folder(place: Path, address: str | None) -> Iterator[Finding]:
    there = nearest_existing(place)
    if not there.is_dir():
        yield fail("storage.place", f"{there} is a file, and {place} would lie in or at it", "name another folder")
        return
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".semantica-doctor-", dir=there))
    except OSError as error:
        yield fail("storage.place", f"{there} cannot be written: {explained(error)}", "name another folder, or change its owner")
        return
    try:
        yield ok("storage.place", f"{there} can be written")
        yield _rename(scratch)
        yield _create(scratch)
        yield _fsync(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    yield space(there, shutil.disk_usage(there).free)
    yield check_shared(there, file_system(there), address)


def nearest_existing(place: Path) -> Path:
    """The place itself, or the nearest folder above it that exists."""
    return next(path for path in (place, *place.parents) if path.exists())


def _rename(scratch: Location) -> Finding:
    """Whether a file is replaced as a whole: a reader sees all old bytes or all new bytes."""
    name = "storage.rename"
    target = scratch / "replaced"
    try:
        write_atomically(target, b"old")
        write_atomically(target, b"new")
        left = target.read_bytes()
    except OSError as error:
        return fail(name, f"a file cannot be replaced: {explained(error)}", "use a disk, NFS 4, s3:// or gs:// instead")
    if left != b"new":
        return fail(name, "a file that was replaced still has its old bytes", "use a disk, NFS 4, s3:// or gs:// instead")
    if isinstance(scratch, Path) and (seen := _seen_while_replaced(scratch / "watched")):
        return fail(name, f"a reader saw {seen} while a file was replaced", "use a disk, NFS 4, s3:// or gs:// instead")
    return ok(name, "a file is replaced whole")


def _seen_while_replaced(target: Path, times: int = 50) -> str:
    """What a reader in another thread saw beside the old file and the new one: no file, or parts of both. "" for nothing."""
    odd: list[str] = []
    target.write_bytes(bytes(_WATCHED_BYTES))
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                data = target.read_bytes()
            except OSError as error:
                odd.append(explained(error))
                return
            if len(data) != _WATCHED_BYTES or data != data[:1] * _WATCHED_BYTES:
                odd.append("parts of both")
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    for turn in range(times):
        partial = target.with_name("partial")
        partial.write_bytes(bytes([turn % 256]) * _WATCHED_BYTES)
        partial.replace(target)
    done.set()
    reader.join(10)
    return odd[0] if odd else ""


def _create(scratch: Location) -> Finding:
    """Whether only one of two creators of a file succeeds. The lease of an output relies on it."""
    name = "storage.create"
    won = [create(scratch / "created", b"1"), create(scratch / "created", b"2")]
    if won != [True, False] or (scratch / "created").read_bytes() != b"1":
        remedy = "two stages could write to the same output at once: use a disk, NFS 4, s3:// or gs://"
        return fail(name, f"a file was created twice ({won})", remedy)
    return ok(name, "of two creators one wins")


def _fsync(scratch: Path) -> Finding:
    """Whether fsync works, and how long it takes: the median of nine."""
    name = "storage.fsync"
    times = []
    try:
        with (scratch / "synced").open("wb") as stream:
            for _ in range(9):
                stream.write(bytes(4096))
                stream.flush()
                started = time.perf_counter()
                os.fsync(stream.fileno())
                times.append(time.perf_counter() - started)
        folder = os.open(scratch, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        return fail(name, f"fsync: {explained(error)}", "a crash of the machine could lose finished work: use another disk")
    milliseconds = 1000 * sorted(times)[4]
    if milliseconds > 1000:
        return warn(name, f"{milliseconds:.0f} ms", "every shard and checkpoint waits for it: use a faster disk")
    return ok(name, f"{milliseconds:.1f} ms")


def space(there: Path, free: float | int) -> Finding:
    """Whether there is enough free space."""
    found = f"{free / 1e9:.1f} GB free at {there}"
    if free < _LEAST_BYTES:
        return fail("storage.space", found, "free some, or name another disk; semantica plan says what a run stores")
    if free < _WANTED_BYTES:
        return warn("storage.space", found, "enough for the demo; semantica plan says what a run stores")
    return ok("storage.space", found)


def file_system(there: Path) -> str:
    """The type of the folder's file system; "" when unknown."""
    mounts = [m for m in psutil.disk_partitions(all=True) if there.resolve().is_relative_to(m.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""


def check_shared(there: Path, kind: str, address: str | None) -> Finding:
    """Whether every node sees the folder, judged by the type of its file system."""
    name, found = "storage.shared", f"{there} is {kind or 'of an unknown kind'}"
    if kind in _BROKEN_FUSE:
        return fail(name, found, "a mounted bucket cannot replace a file as a whole: name it as s3:// or gs://, or use NFS")
    if address is not None and kind not in _NETWORK:
        remedy = f"all nodes of {address} must see the same folder: a shared disk, or s3:// and gs:// for datasets"
        return warn(name, found, remedy)
    return ok(name, found)


def _object_store(place: Location) -> Iterator[Finding]:
    scratch = place / f".semantica-doctor-{uuid.uuid4().hex}"
    try:
        write_atomically(scratch / "first", b"1")
    except Exception as error:  # noqa: BLE001 - each cloud's library has classes of its own
        remedy = "see the bucket's name, your credentials (AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS) and AWS_ENDPOINT_URL"
        yield fail("storage.place", f"{place} cannot be written: {explained(error)}", remedy)
        return
    try:
        yield ok("storage.place", f"{place} can be written")
        yield _rename(scratch)
        yield _create(scratch)
    finally:
        remove_tree(scratch)
