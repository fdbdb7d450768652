"""A folder of files, local or in a bucket: its content in a fixed order, and references to pictures that stay inside it.

A crawl is untrusted input: a link or a symlink in it must never make ingest read a file outside the user's folder. In: the root.
Out: names with sizes, and references to pictures. The sources for trees and label folders use this module.

The source `folder` is the simplest of them: every folder that directly holds pictures is one page. Its path is the page's URL, and
its pictures are in the order of their file names. Files without a picture's extension are ignored. A file with such an extension
that is not a picture goes to quarantine.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from upath import UPath

from semantica.data.location import Location, uri
from semantica.episodes.pages import ImageRef, Page, Part, ReadConfig
from semantica.episodes.quarantine import Reason, utf8
from semantica.episodes.sources import source
from semantica.errors import DataError

log = logging.getLogger(__name__)

# The extensions of pictures: all formats of `images.FORMATS`. SVG is not a raster format and is left out.
PICTURES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs"}
)


@dataclass(frozen=True)
class Listing:
    """The direct content of one folder: names of folders, and names of files with their sizes in bytes, both sorted."""

    folders: tuple[str, ...]
    files: dict[str, int]


class LocalTree:
    """The files under a folder of this machine.

    Symlinked folders are not entered: they could repeat a folder, form a cycle, or leave the root.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            problem = "is a file" if root.exists() else "is not there"
            raise DataError(f"ingest: {root} {problem}; expected the folder of a crawl")
        self.root = root
        self._resolved = root.resolve()

    def walk(self, folder: str = "") -> Iterator[tuple[str, dict[str, int]]]:
        """(path relative to the root, names and sizes of the files, sorted) of the folder and all folders below; "" is the root.

        Raises DataError when a folder cannot be listed.
        """
        for path, folders, names in os.walk(self.root / folder, onerror=_refuse, followlinks=False):
            for name in folders:
                if os.path.islink(os.path.join(path, name)):
                    log.warning("ingest: %s is a symlink to a folder, not entered", os.path.join(path, name))
            folders.sort()
            relative = os.path.relpath(path, self.root)
            yield "" if relative == os.curdir else relative.replace(os.sep, "/"), _sizes(path, names)

    def listing(self, folder: str) -> Listing:
        """The content of the folder, with the same names and sizes as `walk`. Raises DataError when it cannot be listed."""
        path, folders, names = next(os.walk(self.root / folder, onerror=_refuse))
        real = (name for name in folders if not os.path.islink(os.path.join(path, name)))
        return Listing(tuple(sorted(real)), _sizes(path, names))

    def image_ref(self, relative: str) -> ImageRef:
        """The picture at a path relative to the root: with its file, or with the problem OUTSIDE_ROOT, MISSING_FILE or BAD_URL.

        `relative` must be normalised (no "." or ".." inside); a leading ".." leaves the root.
        """
        url = utf8(relative)
        if _climbs(relative):
            return ImageRef(url, problem=Reason.OUTSIDE_ROOT, detail="the path leaves the root")
        try:
            full = (self.root / relative).resolve()
            is_file = full.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # a name that is too long or holds a NUL, a cycle of symlinks
            return ImageRef(url, problem=Reason.BAD_URL, detail=utf8(str(error)))
        if not full.is_relative_to(self._resolved):
            return ImageRef(url, problem=Reason.OUTSIDE_ROOT, detail="a symlink leaves the root")
        if not is_file:
            return ImageRef(url, problem=Reason.MISSING_FILE, detail="no such file in the tree")
        return ImageRef(url, str(full))


class RemoteTree:
    """The files under a prefix of a bucket, which has no symlinks.

    A folder is listed at most once, and only when its parent contains it. So the requests for a page depend on the number of
    existing folders that it points to, not on the number of its pictures.
    """

    def __init__(self, root: UPath) -> None:
        self.root = root
        self._prefix = root.path.rstrip("/")
        self._known: dict[str, Listing] = {}

    def walk(self, folder: str = "") -> Iterator[tuple[str, dict[str, int]]]:
        """As LocalTree.walk, in the same order, with a single listing request. Raises DataError when there are no files."""
        top = join(self._prefix, folder) if folder else self._prefix
        try:
            entries = self.root.fs.find(top, detail=True)
        except OSError as error:
            raise DataError(f"ingest: {self.root} cannot be listed ({error}); check the address and the credentials") from None
        folders: dict[str, dict[str, int]] = {}
        for name, entry in entries.items():
            if name.startswith(f"{top}/") and not name.endswith("/"):  # a key that ends in a slash only marks a folder
                parent, _, file = name[len(self._prefix) + 1 :].rpartition("/")
                folders.setdefault(parent, {})[file] = int(entry["size"] or 0)
        if not folders:
            raise DataError(f"ingest: no files under {self.root}; expected the root of a crawl")
        for parent in sorted(folders, key=lambda path: path.split("/") if path else []):
            yield parent, dict(sorted(folders[parent].items()))

    def listing(self, folder: str) -> Listing:
        """The content of the folder; empty when there is no such folder."""
        if folder not in self._known:
            self._known[folder] = self._ask(folder)
        return self._known[folder]

    def image_ref(self, relative: str) -> ImageRef:
        """As LocalTree.image_ref. The path alone decides whether it is inside the root."""
        url = utf8(relative)
        if _climbs(relative):
            return ImageRef(url, problem=Reason.OUTSIDE_ROOT, detail="the path leaves the root")
        folder, _, name = relative.rpartition("/")
        if name not in self.listing(folder).files:
            return ImageRef(url, problem=Reason.MISSING_FILE, detail="no such file in the tree")
        return ImageRef(url, f"{uri(self.root).rstrip('/')}/{relative}")

    def _ask(self, folder: str) -> Listing:
        parent, _, name = folder.rpartition("/")
        if folder and name not in self.listing(parent).folders:
            return Listing((), {})
        path = join(self._prefix, folder) if folder else self._prefix
        try:
            entries = self.root.fs.ls(path, detail=True)
        except FileNotFoundError:
            return Listing((), {})
        inside = [(entry["name"].rstrip("/").rpartition("/")[2], entry) for entry in entries if entry["name"].rstrip("/") != path]
        files = {name: int(entry["size"] or 0) for name, entry in inside if entry["type"] == "file"}
        folders = {name for name, entry in inside if entry["type"] == "directory"}
        return Listing(tuple(sorted(folders)), dict(sorted(files.items())))


Tree: TypeAlias = LocalTree | RemoteTree


def open_tree(root: Location) -> Tree:
    """The tree under a root. Raises DataError when a local root is no folder; a bucket is checked at its first listing."""
    return LocalTree(root) if isinstance(root, Path) else RemoteTree(root)


def is_picture(name: str) -> bool:
    """True for a file name with a picture's extension."""
    return PurePosixPath(name).suffix.lower() in PICTURES


def fingerprint(sizes: Iterable[tuple[str, int]]) -> str:
    """32 hex digits that change when a path, a size or the order of these files changes."""
    digest = hashlib.sha256()
    for path, size in sizes:
        digest.update(f"{path}\0{size}\n".encode("utf-8", "surrogatepass"))  # names on disk need not be UTF-8
    return digest.hexdigest()[:32]


def join(folder: str, name: str) -> str:
    """The path of a file in a folder, both relative to the root ("" is the root)."""
    return f"{folder}/{name}" if folder else name


def what_is_there(tree: Tree, folder: str = "") -> str:
    """Some names in a folder, for an error message about its content."""
    listing = tree.listing(folder)
    names = [f"{name}/" for name in listing.folders] + list(listing.files)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return utf8(", ".join(names[:5])) + more if names else "nothing"


def _climbs(relative: str) -> bool:
    return relative == ".." or relative.startswith(("../", "/"))


def _sizes(folder: str, names: list[str]) -> dict[str, int]:
    """The sizes of files, sorted by name; 0 for a symlink that leads nowhere."""
    sizes = {}
    for name in sorted(names):
        try:
            sizes[name] = os.stat(os.path.join(folder, name)).st_size
        except OSError:
            sizes[name] = 0  # image_ref reports the problem later
    return sizes


def _refuse(error: OSError) -> None:
    raise DataError(f"ingest: {error.filename} cannot be listed ({error.strerror}); make it readable or leave it out")


@source("folder")
class FolderSource:
    """One page for every folder that directly holds pictures; page_url is its path relative to the root ("." is the root)."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """Runs of `pages_per_part` folders, in the order of their page URLs. Lists the whole tree, opens nothing.

        Raises DataError when the root is missing or no folder under it holds a picture.
        """
        pages = []
        for folder, files in open_tree(root).walk():
            pictures = [(join(folder, name), size) for name, size in files.items() if is_picture(name)]
            if pictures:
                pages.append((_page_url(folder), folder, pictures))
        if not pages:
            raise DataError(f"ingest: no pictures under {root}; expected files ending in one of {' '.join(sorted(PICTURES))}")
        pages.sort()
        parts = []
        for start in range(0, len(pages), settings.pages_per_part):
            run = pages[start : start + settings.pages_per_part]
            sizes = (picture for _, _, pictures in run for picture in pictures)
            parts.append(Part(tuple(folder for _, folder, _ in run), fingerprint=fingerprint(sizes)))
        return parts

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """The pages of the part's folders."""
        tree = open_tree(root)
        for folder in part.paths:
            pictures = (join(folder, name) for name in tree.listing(folder).files if is_picture(name))
            yield Page(_page_url(folder), tuple(tree.image_ref(path) for path in pictures))


def _page_url(folder: str) -> str:
    return utf8(folder) or "."
