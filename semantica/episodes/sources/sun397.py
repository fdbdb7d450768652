"""SUN397 as published and extracted: SUN397/a/abbey/sun_*.jpg and deeper, the 397 classes named in ClassName.txt.

Comes in: the folder SUN397, or the one that holds it, local or in a bucket. Goes out: label episodes (see `labels`) whose page_url
is the class without its letter: "abbey", "balcony/exterior".
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from semantica.episodes.pages import Page, Part, ReadConfig
from semantica.episodes.quarantine import utf8
from semantica.episodes.sources.labels import folder_pages, folder_parts
from semantica.episodes.sources.tree import Tree, is_picture, join, open_tree, what_is_there
from semantica.errors import DataError
from semantica.storage import Location

log = logging.getLogger(__name__)

CLASSES = "ClassName.txt"
ARCHIVE = "SUN397.tar.gz"
MAX_CLASSES_BYTES = 1 << 20  # the published file has 8 KB


class Sun397Source:
    """Label episodes of the SUN397 data set."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """Runs of `pages_per_part` label episodes, in the order of ClassName.txt.

        Raises DataError when ClassName.txt is missing, or names a class without a picture.
        """
        tree = open_tree(root)
        top = _top(tree, root)
        folders = [join(top, name) for name in _classes(tree, join(top, CLASSES))]
        found = {
            folder: pictures
            for folder, files in tree.walk(top)
            if (pictures := {name: size for name, size in files.items() if is_picture(name)})
        }
        missing = [folder for folder in folders if folder not in found]
        if missing:
            raise DataError(
                f"ingest: {root}: expected pictures of all {len(folders)} classes of {CLASSES}, found none of {len(missing)} "
                f"({', '.join(map(utf8, missing[:3]))}...); extract {ARCHIVE} again, or take the lines out"
            )
        unnamed = found.keys() - set(folders)
        if unnamed:
            log.warning("ingest: %d folders with pictures (%s...) are not in %s and are left out", len(unnamed), min(unnamed), CLASSES)
        return folder_parts({folder: found[folder] for folder in folders}, settings)

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """The label episodes of the part."""
        tree = open_tree(root)
        start = len(_top(tree, root).split("/")[0]) 
        return folder_pages(tree, part, lambda folder: folder[start:], settings)
