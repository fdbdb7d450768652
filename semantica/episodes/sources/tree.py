"""A folder of files, read safely: what is in it, in a fixed order, and whether a path stays inside. Used by every source.

A crawl is untrusted input: a link or a symlink in it must never make ingest read a file outside the folder the user named.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from semantica.episodes.pages import ImageRef
from semantica.episodes.quarantine import Reason, utf8
from semantica.errors import DataError

log = logging.getLogger(__name__)


def walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder relative to the root, "" for the root itself; names of its files, sorted) of every folder, in order.

    Symlinked folders are not entered: they would repeat a folder, never end, or leave the root.
    Raises DataError when the root is missing or a folder cannot be listed.
    """
    if not root.is_dir():
        raise DataError(f"ingest: no folder {root}; expected the root of a crawl")
    for folder, folders, names in os.walk(root, onerror=_refuse, followlinks=False):
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                log.warning("ingest: %s is a symlink to a folder, not entered", os.path.join(folder, name))
        folders.sort()
        relative = os.path.relpath(folder, root)
        yield ("" if relative == os.curdir else relative.replace(os.sep, "/")), sorted(names)


def _refuse(error: OSError) -> None:
    raise DataError(f"ingest: {error.filename} cannot be listed ({error.strerror}); make it readable or leave it out")


def image_ref(root: Path, relative: str) -> ImageRef:
    """The picture at a path relative to the root: with its file, or with the problem OUTSIDE_ROOT, MISSING_FILE or BAD_URL.

    `relative` is normalised (no "." or ".." inside); a leading ".." is a way out of the root.
    """
    url = utf8(relative)
    if relative == ".." or relative.startswith(("../", "/")):
        return ImageRef(url, "", Reason.OUTSIDE_ROOT, "the path leaves the root")
    try:
        full = (root / relative).resolve()
        is_file = full.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL in it, a ring of symlinks
        return ImageRef(url, "", Reason.BAD_URL, utf8(str(error)))
    if not full.is_relative_to(root.resolve()):
        return ImageRef(url, "", Reason.OUTSIDE_ROOT, "a symlink leaves the root")
    if not is_file:
        return ImageRef(url, "", Reason.MISSING_FILE, "no such file in the tree")
    return ImageRef(url, str(full))


def join(folder: str, name: str) -> str:
    """The path of a file in a folder, both relative to the root ("" is the root)."""
    return f"{folder}/{name}" if folder else name
