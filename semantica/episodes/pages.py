"""What a source hands to ingest: a page and the pictures it shows, as plain data that travels to any worker.

A source (`sources/`) walks a tree and gives pages in a fixed order; the bytes stay on disk until `ingest` reads them. A
reference that leads nowhere is kept, with its problem, so that ingest can count it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class ImageRef:
    """One picture of a page: its URL (a path relative to the root where it has one) and the local file, or why there is none."""

    url: str
    path: str  # "" when the reference leads to no file
    problem: str = ""  # a code of episodes.quarantine.Reason exactly when `path` is ""
    detail: str = ""  # what a person needs to understand the problem


@dataclass(frozen=True)
class Page:
    """One page, which becomes at most one episode. `problem` says why the page itself could not be read."""

    page_url: str
    images: tuple[ImageRef, ...]
    problem: str = ""
    detail: str = ""


class Source(Protocol):
    """One format of crawl. The pages under `root`, sorted by page_url: the same tree gives the same list on every machine.

    Raises DataError when the root is missing or holds nothing of the format.
    """

    def __call__(self, root: Path) -> list[Page]: ...
