"""LSUN as published: one LMDB folder per class (church_outdoor_train_lmdb), whose values are the bytes of a JPEG or WebP.

In: one such folder, or a folder of them, on a local disk. Out: label episodes (see `labels`), with the pictures' bytes inline; the
page_url is the class without its split ("church_outdoor"). The keys are hashes, so runs of keys are random chunks.

LMDB maps the file into memory and trusts it. A truncated file is detected before it is read, but altered pages inside the file may
crash the worker. Read only data sets from a source that you trust.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from semantica.data.location import Location
from semantica.episodes.pages import ImageRef, Page, Part, ReadConfig
from semantica.episodes.quarantine import DamagedFile, Reason, utf8
from semantica.episodes.sources import source
from semantica.episodes.sources.labels import num_label_pages, slices
from semantica.episodes.sources.tree import LocalTree, join, what_is_there
from semantica.errors import DataError

DATA = "data.mdb"
MIN_BYTES = 8192  # two meta pages of 4096 bytes

_SPLIT = re.compile(r"(_(train|val))?_lmdb\Z")


@source("lsun", labels=True)
class LsunSource:
    """Label episodes of LSUN's LMDB folders."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """Ranges of keys with `pages_per_part` label episodes each; `paths` are the folder and the first key in hex.

        Reads all keys but no value: 2 M keys per second when the file is cached. A damaged database is one part, which `pages`
        refuses. Raises DataError when the root is remote, holds no LMDB folder, or holds two folders of one class.
        """
        tree = _tree(root)
        folders = [folder for folder in ("", *tree.listing("").folders) if DATA in tree.listing(folder).files]
        if not folders:
            raise DataError(
                f"ingest: {root}: expected an extracted LMDB folder of LSUN (CLASS_train_lmdb/{DATA}) or a folder of them, "
                f"found {what_is_there(tree)}"
            )
        twice = [label for label, count in Counter(_label(tree, folder) for folder in folders).items() if count > 1]
        if twice:
            raise DataError(
                f"ingest: {root}: expected one LMDB folder per class, got two of {twice[0]!r}; name the root of one split"
            )
        parts = [part for folder in folders for part in _parts(tree, folder, settings)]
        if not parts:
            raise DataError(f"ingest: {root}: expected pictures, found LMDB without an entry")
        return parts

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """The label episodes of a range of keys. Raises DamagedFile when the database is damaged or changed."""
        tree = _tree(root)
        folder, first = part.paths
        label = utf8(_label(tree, folder))
        key: bytes | None = bytes.fromhex(first)
        if part.start == part.stop:
            with _transaction(tree, folder):
                raise DamagedFile(join(folder, DATA), "it was damaged when it was listed")
        for start in range(part.start, part.stop, settings.images_per_label):
            stop = min(start + settings.images_per_label, part.stop)
            images, key = _read(tree, folder, key, stop - start, label, settings)
            yield Page(label, tuple(images), piece=f"{start // settings.images_per_label:05d}")


def _tree(root: Location) -> LocalTree:
    if not isinstance(root, Path):
        raise DataError(f"ingest: lsun: expected a folder on a local disk, which LMDB maps into memory, got {root}; copy it first")
    return LocalTree(root)


def _label(tree: LocalTree, folder: str) -> str:
    return _SPLIT.sub("", folder or tree.root.resolve().name)


def _parts(tree: LocalTree, folder: str, settings: ReadConfig) -> list[Part]:
    size = tree.listing(folder).files[DATA]
    try:
        with _transaction(tree, folder) as reader:
            num_keys = reader.stat()["entries"]
            ranges = slices(num_label_pages(num_keys, settings), settings)
            starts = {start * settings.images_per_label for start, _ in ranges}
            keys = enumerate(reader.cursor().iternext(keys=True, values=False))
            firsts = [bytes(key).hex() for index, key in keys if index in starts]
    except DamagedFile:
        return [Part((folder, ""), fingerprint=str(size))]  # start = stop: `pages` refuses the part
    step = settings.images_per_label
    return [
        Part((folder, first), start * step, min(stop * step, num_keys), f"{size}-{num_keys}")
        for first, (start, stop) in zip(firsts, ranges, strict=True)
    ]


def _read(
    tree: LocalTree, folder: str, key: bytes | None, count: int, label: str, settings: ReadConfig
) -> tuple[list[ImageRef], bytes | None]:
    """(`count` pictures from the key on, the key after them or None at the end). The database is open in this function only."""
    images: list[ImageRef] = []
    with _transaction(tree, folder) as reader:
        cursor = reader.cursor()
        if key is None or not cursor.set_key(key):
            raise DamagedFile(join(folder, DATA), f"expected the key {key!r} of the listing, found none; the file has changed")
        for name, value in cursor.iternext(keys=True, values=True):
            if len(images) == count:
                return images, bytes(name)
            images.append(_image(f"{label}/{bytes(name).decode('utf-8', 'backslashreplace')}", value, settings))
    if len(images) < count:
        raise DamagedFile(join(folder, DATA), f"expected {count} keys from {key!r}, found {len(images)}; the file has changed")
    return images, None


def _image(name: str, value: bytes | memoryview, settings: ReadConfig) -> ImageRef:
    if not value:
        return ImageRef(name, problem=Reason.EMPTY_FILE, detail="expected an image, got 0 bytes")
    if len(value) > settings.max_image_bytes:
        detail = f"expected at most {settings.max_image_bytes} bytes, got {len(value)}"
        return ImageRef(name, problem=Reason.TOO_MANY_BYTES, detail=detail)
    return ImageRef(name, data=bytes(value))


@contextmanager
def _transaction(tree: LocalTree, folder: str) -> Iterator[lmdb.Transaction]:
    """A read transaction over the whole database. Its values are views of the file, valid inside the block only.

    Nothing is written, not even a lock file. Raises DamagedFile when the file is not LMDB or is cut short (else a SIGBUS later).
    """
    path = join(folder, DATA)
    file = tree.image_ref(path)  # the same rule as for pictures: never a file outside the root
    if file.problem:
        raise DamagedFile(path, file.detail)
    if not os.access(file.path, os.R_OK):
        raise DamagedFile(path, "cannot be read: Permission denied")
    size = os.path.getsize(file.path)
    if size < MIN_BYTES:
        raise DamagedFile(path, f"expected an LMDB file of at least {MIN_BYTES} bytes, got {size}")
    try:
        with lmdb.open(file.path, subdir=False, create=False, readonly=True, lock=False, readahead=False) as environment:
            needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            if size < needed:
                raise DamagedFile(path, f"expected {needed} bytes, got {size}; the file is cut short")
            with environment.begin(buffers=True) as reader:
                yield reader
    except lmdb.Error as error:
        if type(error) is lmdb.Error:  # an error of the system (permission, memory); damage has classes of its own
            raise DataError(f"ingest: {file.path} cannot be opened ({error})") from None
        raise DamagedFile(path, str(error)) from None
