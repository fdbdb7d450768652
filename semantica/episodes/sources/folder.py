"""A tree of folders as pages: every folder that directly holds pictures is one page, its path the page's URL.

Comes in: class folders, an export of an album, the `images/` of a package. Goes out: pages whose pictures are in the order of
their file names. Files without a picture's extension are not looked at; a file with one that is no picture goes to quarantine.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from semantica.episodes.pages import Page
from semantica.episodes.quarantine import utf8
from semantica.episodes.sources.tree import image_ref, join, walk
from semantica.errors import DataError

# What counts as a picture by name. All raster formats of `images.FORMATS`; SVG is a program, not pixels, and is left out.
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs"}
)


def folder_pages(root: Path) -> list[Page]:
    """One page for every folder that directly holds pictures; page_url is its path relative to the root ("." is the root).

    Raises DataError when the root is missing or no folder under it holds a picture.
    """
    pages = []
    for folder, names in walk(root):
        pictures = [join(folder, name) for name in names if PurePosixPath(name).suffix.lower() in EXTENSIONS]
        if pictures:
            pages.append(Page(utf8(folder) or ".", tuple(image_ref(root, path) for path in pictures)))
    if not pages:
        known = " ".join(sorted(EXTENSIONS))
        raise DataError(f"ingest: no pictures under {root}; expected files ending in one of {known}")
    return sorted(pages, key=lambda page: page.page_url)
