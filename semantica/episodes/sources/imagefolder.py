"""ROOT/CLASS/*.jpg, as torchvision's ImageFolder reads it: every folder in the root is a class, pictures below it belong to it.

Comes in: the root of such a tree, local or in a bucket. Goes out: label episodes (see `labels`), page_url the name of the folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from semantica.data.location import Location
from semantica.episodes.pages import Page, Part, ReadConfig
from semantica.episodes.sources.labels import folder_class, folder_parts, label_pages, pictures_below
from semantica.episodes.sources.tree import Tree, is_picture, join, open_tree, what_is_there
from semantica.errors import DataError

log = logging.getLogger(__name__)


class ImageFolderSource:
    """Label episodes of a folder of class folders."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """Runs of `pages_per_part` label episodes, class after class. Raises DataError when no class folder holds a picture."""
        tree = open_tree(root)
        classes = class_folders(tree, "")
        if not classes:
            raise DataError(f"ingest: {root}: expected ROOT/CLASS/*.jpg (torchvision's ImageFolder), found {what_is_there(tree)}")
        return folder_parts(classes, settings)

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """The label episodes of the part."""
        tree = open_tree(root)
        classes = (folder_class(tree, folder, folder, pictures_below(tree, folder)) for folder in part.paths)
        return label_pages(classes, part.start, part.stop, settings)


def class_folders(tree: Tree, top: str) -> dict[str, dict[str, int]]:
    """For every folder in `top` with pictures in it or below: its path -> path of a picture within it -> size in bytes.

    Pictures directly in `top` have no class and are left out, as torchvision does, with a warning.
    """
    classes: dict[str, dict[str, int]] = {}
    for folder, files in tree.walk(top):
        pictures = {name: size for name, size in files.items() if is_picture(name)}
        if folder == top and pictures:
            log.warning("ingest: %d pictures directly in %s have no class and are left out", len(pictures), tree.root / top)
        elif pictures:
            name, _, below = (folder[len(top) + 1 :] if top else folder).partition("/")
            inside = classes.setdefault(join(top, name), {})
            inside.update((join(below, picture), size) for picture, size in pictures.items())
    return classes
