"""Crawls that are files of one format: which files there are, and how one is opened so that its damage has a name.

Used by every source of archives and tables. Comes in: a root (a folder or one file, local or remote). Goes out: one `Part` a
file, and streams. What is wrong with a file becomes DamagedFile, and that it may not be opened is one such thing; what is wrong
with the storage (a network, a disk) stays the error it is, so that a task which meets it is run again and nothing is quarantined
for it.
"""

from __future__ import annotations

import gzip
import io
import logging
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from semantica.data.location import Location
from semantica.episodes.pages import Page, Part
from semantica.episodes.quarantine import DamagedFile, Reason, utf8
from semantica.errors import DataError

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 64 << 20  # of a text table; a longer line is no row
# What the libraries raise about the bytes of a file. OSError: BadGzipFile, and the plain ones of Arrow and FastWARC; UnicodeError:
# the names of columns in Parquet.
DAMAGED = (EOFError, OSError, UnicodeError, zlib.error, zipfile.BadZipFile, tarfile.TarError, pa.ArrowException)


def list_parts(root: Location, suffixes: tuple[str, ...], what: str) -> list[Part]:
    """One part for every file under the root whose name ends in one of the suffixes, in the order of their paths.

    A root that is a file is the one part, whatever its name. Names that begin with a dot are left out, as are symlinks that leave
    the root and symlinked folders. Raises DataError when there is nothing.
    """
    if root.is_file():
        return [Part(("",), fingerprint=str(root.stat().st_size))]
    found, outside = _local_files(root, suffixes) if isinstance(root, Path) else (_remote_files(root, suffixes), 0)
    if not found:
        links = f"; {outside} symlinks that leave it are not followed: name the folder the files are in" if outside else ""
        raise DataError(f"ingest: no {what} under {root}; expected files ending in {' '.join(suffixes)}{links}")
    if outside:
        log.warning("ingest: %d files under %s are symlinks that leave it, not read", outside, root)
    return [Part((path,), fingerprint=str(size)) for path, size in sorted(found)]


def _local_files(root: Path, suffixes: tuple[str, ...]) -> tuple[list[tuple[str, int]], int]:
    """((path relative to the root, bytes) of the files, how many are symlinks that leave the root)."""
    if not root.is_dir():
        raise DataError(f"ingest: no folder or file {root}; expected the root of a crawl")
    found, outside, inside = [], 0, root.resolve()
    for folder, folders, names in os.walk(root, onerror=_refuse, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or not name.lower().endswith(suffixes):
                continue
            if path.is_symlink() and not (path.resolve().is_relative_to(inside) and path.is_file()):
                outside += 1
            elif path.is_file():
                found.append((path.relative_to(root).as_posix(), path.stat().st_size))
    return found, outside


def _refuse(error: OSError) -> None:
    raise DataError(f"ingest: {error.filename} cannot be listed ({error.strerror}); make it readable or leave it out")


def _remote_files(root: Any, suffixes: tuple[str, ...]) -> list[tuple[str, int]]:
    """(path relative to the root, bytes) of the files under a prefix of a bucket; one listing, whatever the depth."""
    start = root.path.strip("/") + "/"
    found = []
    for path, facts in root.fs.find(root.path, detail=True).items():
        relative = path.strip("/").removeprefix(start)
        if relative.lower().endswith(suffixes) and not any(name.startswith(".") for name in relative.split("/")):
            found.append((relative, int(facts["size"] or 0)))
    return found


def location_of(root: Location, part: Part) -> Location:
    """Where the one file of a part is."""
    return root / part.paths[0] if part.paths[0] else root


def label_of(root: Location, part: Part) -> str:
    """What the file of a part is called in rows and messages: its path relative to the root, or its name when it is the root."""
    return utf8(part.paths[0] or root.name)


@contextmanager
def permission_check(name: str) -> Iterator[None]:
    """A block that opens a file of the crawl, called `name`. Raises DamagedFile when we have no permission to."""
    try:
        yield
    except PermissionError as error:
        raise DamagedFile(name, f"cannot be read: {utf8(error.strerror or str(error))}") from None


class _Watched(io.RawIOBase):
    """A stream that remembers when the storage, not the content, failed."""

    def __init__(self, stream: Any) -> None:  # a file of any file system; not all of them are io.IOBase
        self.stream = stream
        self.failure: Exception | None = None

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)
        try:
            data = self.stream.read(len(view))
        except Exception as error:
            self.failure = error
            raise
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self.stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self.stream.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


@contextmanager
def open_part(root: Location, part: Part) -> Iterator[io.BufferedReader]:
    """The file of a part, open. What the block raises about the file's content leaves it as DamagedFile."""
    with permission_check(label_of(root, part)):
        file = location_of(root, part).open("rb")
    with file:
        watched = _Watched(file)
        try:
            stream = cast(io.BufferedReader, io.BufferedReader(watched, 1 << 18))
            if not stream.peek(1):
                raise DamagedFile(label_of(root, part), "the file is empty")
            yield stream
        except DAMAGED as error:
            if watched.failure is not None or (isinstance(error, OSError) and error.errno is not None):
                raise
            raise DamagedFile(label_of(root, part), utf8(str(error)) or type(error).__name__) from None


def decompress(stream: io.BufferedReader) -> io.BufferedReader:
    """The stream itself, or what is inside when it is gzip. Reading it raises EOFError when the gzip file ends too early."""
    if stream.peek(2)[:2] != b"\x1f\x8b":
        return stream
    return cast(io.BufferedReader, io.BufferedReader(gzip.GzipFile(fileobj=stream), 1 << 18))


def lines(stream: io.BufferedIOBase, limit: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, the line with its end) of every line; None stands for a line of more than `limit` bytes."""
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) <= limit:
            yield number, line
            continue
        while not line.endswith(b"\n") and (line := stream.readline(limit)):
            pass
        yield number, None


def unreadable_page(name: str, detail: str) -> Page:
    """The page of a row that cannot be read; `name` says which row of which file."""
    return Page(name, (), Reason.PAGE_UNREADABLE, utf8(detail), piece=name, has_url=False)
