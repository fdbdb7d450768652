"""Label episodes: the pictures of a class, cut into random chunks; and `imagefolder`, the simplest source of them.

In: classes with the names of their pictures. Out: pages whose page_url is the label and whose piece is the number of the chunk. A
chunk holds `images_per_label` pictures of one class (the last chunk holds the rest), in the order of the SHA-256 of their names
within the class. So it is a random subset, and the same one on every machine.

Use `split_by="image"` for these sources: by page, all pictures of a label would be on one side.

`imagefolder` reads ROOT/CLASS/*.jpg, as torchvision's ImageFolder: every folder in the root is a class with all pictures below it,
and page_url is the name of the folder. The root may be local or in a bucket.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from semantica.data.location import Location
from semantica.episodes.pages import ImageRef, Page, Part, ReadConfig
from semantica.episodes.quarantine import utf8
from semantica.episodes.sources import source
from semantica.episodes.sources.tree import Tree, fingerprint, is_picture, join, open_tree, what_is_there
from semantica.errors import DataError


@dataclass(frozen=True)
class LabelClass:
    """The pictures of one label: their names within the class, and the function that gives the reference of a name."""

    label: str
    names: Collection[str]
    reference: Callable[[str], ImageRef]


def in_random_order(names: Iterable[str]) -> list[str]:
    """The names in the order of their SHA-256."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest())


def label_pages(classes: Iterable[LabelClass], start: int, stop: int, settings: ReadConfig) -> Iterator[Page]:
    """The label episodes start..stop-1, counted over all classes in turn. References are created for these only."""
    index = 0
    for labelled in classes:
        names = in_random_order(labelled.names)
        for chunk, first in enumerate(range(0, len(names), settings.images_per_label)):
            if start <= index < stop:
                chosen = names[first : first + settings.images_per_label]
                yield Page(utf8(labelled.label), tuple(map(labelled.reference, chosen)), piece=f"{chunk:05d}")
            index += 1


def num_label_pages(num_images: int, settings: ReadConfig) -> int:
    """The number of label episodes of a class with `num_images` pictures."""
    return -(-num_images // settings.images_per_label)


def slices(num_pages: int, settings: ReadConfig) -> list[tuple[int, int]]:
    """The ranges (start, stop) of `pages_per_part` pages each."""
    step = settings.pages_per_part
    return [(start, min(start + step, num_pages)) for start in range(0, num_pages, step)]


# --- classes that are folders of a tree ---


def pictures_in(tree: Tree, folder: str) -> dict[str, int]:
    """The pictures directly in a folder: name -> size in bytes."""
    return {name: size for name, size in tree.listing(folder).files.items() if is_picture(name)}


def pictures_below(tree: Tree, folder: str) -> dict[str, int]:
    """The pictures in a class folder and below it: path within the class -> size in bytes."""
    return {
        join(below, name)[len(folder) + 1 :]: size
        for below, files in tree.walk(folder)
        for name, size in files.items()
        if is_picture(name)
    }


def folder_parts(classes: Mapping[str, Mapping[str, int]], settings: ReadConfig) -> list[Part]:
    """Parts of `pages_per_part` label episodes each. `classes`: folder of a class -> path within the class -> size.

    A part names the folders it needs; start and stop count the label episodes of these folders.
    """
    folders = list(classes)
    ends = list(accumulate(num_label_pages(len(classes[folder]), settings) for folder in folders))
    parts = []
    for start, stop in slices(ends[-1] if ends else 0, settings):
        inside = [i for i, end in enumerate(ends) if end > start and (ends[i - 1] if i else 0) < stop]
        before = ends[inside[0] - 1] if inside[0] else 0
        sizes = ((join(folders[i], name), size) for i in inside for name, size in classes[folders[i]].items())
        parts.append(Part(tuple(folders[i] for i in inside), start - before, stop - before, fingerprint(sizes)))
    return parts


def folder_class(tree: Tree, folder: str, label: str, names: Collection[str]) -> LabelClass:
    """The class whose pictures lie in a folder, under these names."""
    return LabelClass(label, names, lambda name: tree.image_ref(join(folder, name)))


log = logging.getLogger(__name__)


@source("imagefolder", labels=True)
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
    """For every folder in `top` with pictures in or below it: path of the folder -> path of a picture within it -> size in bytes.

    Pictures directly in `top` have no class and are left out with a warning, as in torchvision.
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
