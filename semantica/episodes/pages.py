"""The data that a source gives to ingest: parts of a crawl, the pages of a part, and the pictures of a page.

A source (`sources/`) lists a crawl as *parts* on the driver, cheaply, and reads the pages of one part on a worker, lazily. `ingest`
reads the bytes of a picture later, unless the source has them in memory already (from a compressed archive). A reference without a
file is kept with its problem, so that ingest can count it, or fetch it when asked to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from semantica.config import config, require
from semantica.data.location import Location


@dataclass(frozen=True)
class ImageRef:
    """One picture of a page: its URL (a path relative to the root when it has none), and its bytes, their place, or a problem.

    Exactly one of `path`, `data` and `problem` is set.
    """

    url: str
    path: str = ""  # a local file or URI that holds the bytes
    problem: str = ""  # a code of episodes.quarantine.Reason
    detail: str = ""  # explains the problem to a person
    data: bytes | None = None  # the bytes themselves, from a source that cannot seek
    offset: int = 0  # of the first byte in `path`
    length: int = 0  # number of bytes; 0: all bytes from the offset on


@dataclass(frozen=True)
class Page:
    """One page, which becomes at most one episode per side. `problem` says why the page itself could not be read."""

    page_url: str
    images: tuple[ImageRef, ...]
    problem: str = ""
    detail: str = ""
    piece: str = ""  # distinguishes rows of one page_url: chunks of a label, or copies of a page in several files of the crawl
    has_url: bool = True  # False: the source carries no page URL, and page_url only names the picture
    opt_out: tuple[str, ...] = ()  # robots directives of the page, lower case: "noai", "noimageai", "noindex", ...


@dataclass(frozen=True)
class Part:
    """The input of one task, which makes one shard of it: files of the crawl, or a slice of one. The same on every machine."""

    paths: tuple[str, ...]  # relative to the root; ("",) when the root is a file
    start: int = 0  # the slice start..stop, in the source's own unit (such as row groups); 0, 0: the whole
    stop: int = 0
    fingerprint: str = ""  # of the sizes of the files, so that a changed crawl has another listing


@config
class ReadConfig:
    """How sources cut a crawl into parts and read it."""

    pages_per_part: int = 256  # of trees and label folders; archives and tables are cut by files and row groups
    images_per_label: int = 64  # a label episode is a random chunk of this many pictures of one class
    join_window_mb: int = 512  # memory for WARC pages and pictures that wait for each other
    max_image_bytes: int = 50_000_000

    def __post_init__(self) -> None:
        for name in ("pages_per_part", "images_per_label", "join_window_mb", "max_image_bytes"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))


@runtime_checkable
class Source(Protocol):
    """One format of crawl."""

    def parts(self, root: Location, settings: ReadConfig) -> Sequence[Part]:
        """The parts of the crawl under `root` (a folder or one file), in a fixed order. Runs on the driver, so it opens few files.

        Raises DataError when the root is missing or holds nothing of the format.
        """
        ...

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """The pages of one part, in a fixed order, one at a time. Runs on a worker.

        Raises quarantine.DamagedFile when a file is not of the format or ends too early: the part is then quarantined whole.
        """
        ...
