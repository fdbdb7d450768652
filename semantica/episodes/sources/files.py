"""Crawls that are files of one format: listing the files, and opening one so that damage is told from errors of the storage.

Used by every source of archives and tables. In: a root (a folder or one file, local or remote). Out: one `Part` per file, and
streams. A fault of a file becomes DamagedFile, and so does a missing permission. An error of the storage (a network, a disk) is
raised unchanged, so that the task runs again and nothing is quarantined for it.
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
# The exceptions of the libraries about the bytes of a file. OSError: BadGzipFile, and plain OSErrors of Arrow and FastWARC.
# UnicodeError: names of columns in Parquet.
DAMAGED = (EOFError, OSError, UnicodeError, zlib.error, zipfile.BadZipFile, tarfile.TarError, pa.ArrowException)


def list_parts(root: Location, suffixes: tuple[str, ...], what: str) -> list[Part]:
    """One part per file under the root whose name ends in one of the suffixes, in the order of their paths.

    A root that is a file is the only part, whatever its name. Left out: names that begin with a dot, symlinks that leave the root,
    and symlinked folders. Raises DataError when no file is left.
    """
    if root.is_file():
        return [Part(("",), fingerprint=str(root.stat().st_size))]
    files, outside = _local_files(root, suffixes) if isinstance(root, Path) else (_remote_files(root, suffixes), 0)
    if not files:
        links = f"; {outside} symlinks that leave it are not followed: name the folder the files are in" if outside else ""
        raise DataError(f"ingest: no {what} under {root}; expected files ending in {' '.join(suffixes)}{links}")
    if outside:
        log.warning("ingest: %d files under %s are symlinks that leave it, not read", outside, root)
    return [Part((path,), fingerprint=str(size)) for path, size in sorted(files)]


def _local_files(root: Path, suffixes: tuple[str, ...]) -> tuple[list[tuple[str, int]], int]:
    """((path relative to the root, bytes) of each file, number of symlinks that leave the root)."""
    if not root.is_dir():
        raise DataError(f"ingest: no folder or file {root}; expected the root of a crawl")
    files, outside, inside = [], 0, root.resolve()
    for folder, folders, names in os.walk(root, onerror=_refuse, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or not name.lower().endswith(suffixes):
                continue
            if path.is_symlink() and not (path.resolve().is_relative_to(inside) and path.is_file()):
                outside += 1
            elif path.is_file():
                files.append((path.relative_to(root).as_posix(), path.stat().st_size))
    return files, outside


def _refuse(error: OSError) -> None:
    raise DataError(f"ingest: {error.filename} cannot be listed ({error.strerror}); make it readable or leave it out")


def _remote_files(root: Any, suffixes: tuple[str, ...]) -> list[tuple[str, int]]:
    """(path relative to the root, bytes) of each file under a prefix of a bucket; one listing request for any depth."""
    start = root.path.strip("/") + "/"
    files = []
    for path, facts in root.fs.find(root.path, detail=True).items():
        relative = path.strip("/").removeprefix(start)
        if relative.lower().endswith(suffixes) and not any(name.startswith(".") for name in relative.split("/")):
            files.append((relative, int(facts["size"] or 0)))
    return files


def location_of(root: Location, part: Part) -> Location:
    """The location of a part's only file."""
    return root / part.paths[0] if part.paths[0] else root


def label_of(root: Location, part: Part) -> str:
    """The name of a part's file in rows and messages: its path relative to the root, or its own name when it is the root."""
    return utf8(part.paths[0] or root.name)


@contextmanager
def permission_check(name: str) -> Iterator[None]:
    """A context that opens the crawl's file `name`. Raises DamagedFile when the permission is missing."""
    try:
        yield
    except PermissionError as error:
        raise DamagedFile(name, f"cannot be read: {utf8(error.strerror or str(error))}") from None


class _Watched(io.RawIOBase):
    """A stream that remembers an error of the storage, so that it is not taken for damage of the content."""

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
    """The opened file of a part. Errors in the block about the file's content become DamagedFile."""
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
    """The stream itself, or its decompressed content when it is gzip. Reading raises EOFError when gzip ends too early."""
    if stream.peek(2)[:2] != b"\x1f\x8b":
        return stream
    return cast(io.BufferedReader, io.BufferedReader(gzip.GzipFile(fileobj=stream), 1 << 18))


def lines(stream: io.BufferedIOBase, limit: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, the line with its end) of every line; None instead of a line with more than `limit` bytes."""
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
    """The page for a row that cannot be read; `name` gives the file and the row."""
    return Page(name, (), Reason.PAGE_UNREADABLE, utf8(detail), piece=name, has_url=False)
