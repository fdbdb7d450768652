"""A tree of folders as pages: every folder that directly holds pictures is one page, its path the page's URL.

Comes in: class folders, an export of an album, the `images/` of a package. Goes out: pages whose pictures are in the order of
their file names. Files without a picture's extension are not looked at; a file with one that is no picture goes to quarantine.
"""

from __future__ import annotations

from collections.abc import Iterator

from semantica.data.location import Location
from semantica.episodes.pages import Page, Part, ReadConfig
from semantica.episodes.quarantine import utf8
from semantica.episodes.sources.tree import PICTURES, fingerprint, is_picture, join, open_tree
from semantica.errors import DataError


class FolderSource:
    """One page for every folder that directly holds pictures; page_url is its path relative to the root ("." is the root)."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """Runs of `pages_per_part` folders, in the order of their page URLs. Lists the whole tree, opens nothing.

        Raises DataError when the root is missing or no folder under it holds a picture.
        """
        found = []
        for folder, files in open_tree(root).walk():
            pictures = [(join(folder, name), size) for name, size in files.items() if is_picture(name)]
            if pictures:
                found.append((_page_url(folder), folder, pictures))
        if not found:
            raise DataError(f"ingest: no pictures under {root}; expected files ending in one of {' '.join(sorted(PICTURES))}")
        found.sort()
        parts = []
        for start in range(0, len(found), settings.pages_per_part):
            run = found[start : start + settings.pages_per_part]
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
