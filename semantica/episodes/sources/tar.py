"""Uncompressed tars that are read in place: their members, and references to the bytes of a member where they lie in the file.

Comes in: a tar in a tree, or one within another, which is contiguous bytes too. Goes out: headers only. Python's own reader takes
the first header that it does not understand for the end; here a tar ends with its end mark, or it is damaged.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from semantica.data.location import location
from semantica.episodes.pages import ImageRef
from semantica.episodes.quarantine import DamagedFile, Reason, utf8
from semantica.episodes.sources.files import permitted
from semantica.episodes.sources.tree import Tree, is_picture
from semantica.errors import DataError

BLOCK_BYTES = 1 << 18  # of a remote tar, read ahead while only headers are wanted; the libraries' default is megabytes


def open_tar(tree: Tree, name: str) -> io.BufferedReader:
    """The tar in the tree's root, for reading here and there. Raises DamagedFile when we have no permission to open it."""
    file = tree.image_ref(name)  # the same rule as for pictures: never a file outside the root
    if file.problem:
        raise DataError(f"ingest: {tree.root / name}: expected a file in the root, got {file.problem} ({file.detail})")
    where = location(file.path)
    with permitted(name):
        if isinstance(where, Path):
            return where.open("rb")
        return io.BufferedReader(where.fs.open(where.path, "rb", block_size=BLOCK_BYTES))


def tar_members(
    stream: io.BufferedReader, where: str, start: int, end: int, *, is_slice: bool = False
) -> Iterator[tarfile.TarInfo]:
    """The members of the uncompressed tar in bytes start..end of the stream; of a slice of a larger tar no end mark is expected.

    Raises DamagedFile where it is no tar, ends too early, or has a member that reaches beyond the end. Python's own reader takes
    the first header it does not understand for the end.
    """
    at = start
    try:
        stream.seek(start)
        archive = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 - closing it would do nothing, the stream is not its own
        while not (is_slice and at >= end) and (member := archive.next()) is not None:
            if member.offset_data + member.size > end:
                raise DamagedFile(
                    where, f"{utf8(member.name)}: expected {member.size} bytes, the file ends before; it is cut short"
                )
            yield member
            at = archive.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DamagedFile(where, f"expected a tar, got {error} in bytes {start}..{end}") from None
    if not is_slice:
        stream.seek(at)
        if stream.read(max(0, min(tarfile.BLOCKSIZE, end - at))) != bytes(tarfile.BLOCKSIZE):
            raise DamagedFile(where, f"expected a header or the end mark at byte {at}, got neither; it is cut short or damaged")


def tar_pictures(members: Iterable[tarfile.TarInfo], where: str) -> dict[str, tarfile.TarInfo]:
    """The pictures among the members, by name. Raises DamagedFile when two have one name."""
    found: dict[str, tarfile.TarInfo] = {}
    for member in members:
        if is_picture(member.name) and not member.isdir() and found.setdefault(member.name, member) is not member:
            raise DamagedFile(where, f"expected every name once, got {utf8(member.name)} twice")
    return found


def tar_image(path: str, url: str, member: tarfile.TarInfo) -> ImageRef:
    """The reference to a member of the uncompressed tar at `path`: the bytes where they lie in it, or why there are none."""
    if not member.isfile() or member.issparse():
        return ImageRef(url, problem=Reason.UNREADABLE_FILE, detail="expected the bytes of a file, got a link or a sparse file")
    if not member.size:  # a length of 0 would mean all that follows
        return ImageRef(url, problem=Reason.EMPTY_FILE, detail="expected an image, got 0 bytes")
    return ImageRef(url, path, offset=member.offset_data, length=member.size)
