"""SUN397 as published and extracted: SUN397/a/abbey/sun_*.jpg and deeper; ClassName.txt names the 397 classes.

In: the folder SUN397 or its parent, local or in a bucket. Out: label episodes (see `labels`) whose page_url is the class without
its letter: "abbey", "balcony/exterior".
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

from semantica.data.location import Location, location
from semantica.episodes.pages import Page, Part, ReadConfig
from semantica.episodes.quarantine import utf8
from semantica.episodes.sources import source
from semantica.episodes.sources.labels import folder_class, folder_parts, label_pages, pictures_in
from semantica.episodes.sources.tree import Tree, is_picture, join, open_tree, what_is_there
from semantica.errors import DataError

log = logging.getLogger(__name__)

TOP = "SUN397"
CLASSES = "ClassName.txt"
ARCHIVE = "SUN397.tar.gz"
MAX_CLASSES_BYTES = 1 << 20  # the published file has 8 KB

_CLASS = re.compile(r"/[a-z]/[^/]+(/[^/]+)*\Z")


@source("sun397", labels=True)
class Sun397Source:
    """Label episodes of the SUN397 data set."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """Runs of `pages_per_part` label episodes, in the order of ClassName.txt.

        Raises DataError when ClassName.txt is missing, or names a class without a picture.
        """
        tree = open_tree(root)
        top = _top(tree, root)
        folders = [join(top, name) for name in _classes(tree, join(top, CLASSES))]
        pictures_of = {
            folder: pictures
            for folder, files in tree.walk(top)
            if (pictures := {name: size for name, size in files.items() if is_picture(name)})
        }
        missing = [folder for folder in folders if folder not in pictures_of]
        if missing:
            raise DataError(
                f"ingest: {root}: expected pictures of all {len(folders)} classes of {CLASSES}, found none of {len(missing)} "
                f"({', '.join(map(utf8, missing[:3]))}...); extract {ARCHIVE} again, or remove these classes from {CLASSES}"
            )
        unnamed = pictures_of.keys() - set(folders)
        if unnamed:
            log.warning(
                "ingest: %d folders with pictures (%s...) are not in %s and are left out", len(unnamed), min(unnamed), CLASSES
            )
        return folder_parts({folder: pictures_of[folder] for folder in folders}, settings)

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """The label episodes of the part."""
        tree = open_tree(root)
        classes = (folder_class(tree, folder, _label(folder), pictures_in(tree, folder)) for folder in part.paths)
        return label_pages(classes, part.start, part.stop, settings)


def _top(tree: Tree, root: Location) -> str:
    """The folder that holds ClassName.txt: "" or "SUN397". Raises DataError when there is none."""
    for top in ("", TOP):
        if (not top or top in tree.listing("").folders) and CLASSES in tree.listing(top).files:
            return top
    hint = (
        f"; extract {ARCHIVE} first" if ARCHIVE in tree.listing("").files else "; folders of other classes are read as imagefolder"
    )
    raise DataError(f"ingest: {root}: expected the extracted folder {TOP} with {CLASSES} in it, found {what_is_there(tree)}{hint}")


def _classes(tree: Tree, path: str) -> list[str]:
    """The folders that ClassName.txt names (one per line, such as "/a/abbey"), relative to its own folder."""
    file = tree.image_ref(path)  # the same rule as for pictures: never a file outside the root
    if file.problem:
        raise DataError(f"ingest: {path}: expected a file in the tree, got {file.problem} ({file.detail})")
    with location(file.path).open("rb") as stream:
        text = stream.read(MAX_CLASSES_BYTES).decode("utf-8", "replace")
    names = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = next((name for name in names if not _CLASS.match(name)), None)
    if wrong is not None or not names or len(set(names)) < len(names):
        got = "one twice" if wrong is None and names else repr((wrong or "")[:80])
        raise DataError(f"ingest: {path}: expected lines like /a/abbey or /b/balcony/exterior, each once, got {got}")
    return [name[1:] for name in names]


def _label(folder: str) -> str:
    """ "balcony/exterior" of "SUN397/b/balcony/exterior"."""
    return folder.removeprefix(f"{TOP}/").partition("/")[2]
