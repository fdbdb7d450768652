"""Joins the pages and pictures of an archive by URL within a window; they come as separate records in any order.

Used by `warc`. One queue, in the order of the records, holds the pages that wait for pictures and the pictures that wait for pages.
It holds at most `max_bytes`. Beyond that, the oldest entry leaves: a page with the pictures found for it, or a picture, which is
dropped. A picture that a page shows moves to the end of the queue, so it outlives this page. Hence a picture is found when it lies
less than a window before or after its page, or less than a window from another page that shows it and is itself that near.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import quote, urldefrag, urlsplit, urlunsplit

from semantica.episodes.pages import ImageRef, Page
from semantica.episodes.quarantine import Reason

ENTRY_BYTES = 400  # memory of an entry, or of a URL of a page, without its texts and data
MAX_REDIRECTS = 5

_ESCAPE = re.compile(r"%[0-9a-fA-F]{2}")
_PORTS = {"http": 80, "https": 443}


def url_key(url: str) -> str:
    """The canonical form of an absolute http(s) URL; "" for anything else.

    It has no fragment and no default port, scheme and host are in lower case, and characters outside ASCII are escaped.
    """
    try:
        parts = urlsplit(urldefrag(url.strip())[0])
        host, port = (parts.hostname or "").lower(), parts.port
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
    except ValueError:  # no URL, or a host that is no name (UnicodeError is one)
        return ""
    if parts.scheme not in _PORTS or not host:
        return ""
    if port is not None and port != _PORTS[parts.scheme]:
        host = f"{host}:{port}"
    path, query = (
        _ESCAPE.sub(lambda match: match[0].upper(), quote(text, safe="%/:=&?~+!$,;'@()*[]|", errors="surrogateescape"))
        for text in (parts.path or "/", parts.query)
    )
    return urlunsplit((parts.scheme, host, path, query, ""))


def _other_scheme(key: str) -> str:
    return key.replace("https:", "http:", 1) if key.startswith("https:") else key.replace("http:", "https:", 1)


@dataclass(frozen=True)
class Picture:
    """A picture of the archive: its bytes, or the problem with them."""

    data: bytes | None
    problem: str = ""
    detail: str = ""


@dataclass(frozen=True)
class WaitingPage:
    """A page and its pictures: for each, the URLs that the page offers, the best first, or a reference that needs no search."""

    page: Page
    wanted: tuple[tuple[str, ...] | ImageRef, ...]


class Join:
    """The queue. The methods `add_...` yield the pages that leave it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_found = 0
        self.num_missing = 0
        self._num_bytes = 0
        self._num_pages = 0
        # key of a URL -> its picture, or the key that it leads to; number of a page -> the page. Each with its bytes.
        self._queue: OrderedDict[str | int, tuple[Picture | WaitingPage | str, int]] = OrderedDict()

    def add_picture(self, url: str, picture: Picture) -> Iterator[Page]:
        """Add a picture's record. A later record of the same URL replaces the first."""
        self._put(url_key(url), picture, len(picture.data or b""))
        yield from self._shrink()

    def add_alias(self, url: str, target: str) -> Iterator[Page]:
        """Add a URL that leads to another: a redirect, or a revisit record."""
        key, leads_to = url_key(url), url_key(target)
        if leads_to and key != leads_to:
            self._keep(leads_to)
            self._put(key, leads_to, len(leads_to))
        else:
            self._keep(key)
        yield from self._shrink()

    def add_page(self, page: WaitingPage) -> Iterator[Page]:
        """Add a page's record."""
        urls = [url for offered in page.wanted for url in ((offered.url,) if isinstance(offered, ImageRef) else offered)]
        self._num_pages += 1
        self._put(self._num_pages, page, sum(ENTRY_BYTES + len(url) for url in urls))
        for url in urls:  # only after the page is in the queue: its pictures must be behind it
            self._keep(url_key(url))
        yield from self._shrink()

    def rest(self) -> Iterator[Page]:
        """The pages still in the queue, at the end of the archive."""
        self.max_bytes = 0
        yield from self._shrink()

    def _put(self, key: str | int, entry: Picture | WaitingPage | str, num_bytes: int) -> None:
        if key == "":
            return
        _, before = self._queue.pop(key, (None, 0))
        size = ENTRY_BYTES + num_bytes + (len(key) if isinstance(key, str) else 0)
        self._queue[key] = entry, size
        self._num_bytes += size - before

    def _shrink(self) -> Iterator[Page]:
        while self._queue and self._num_bytes > self.max_bytes:
            _, (entry, size) = self._queue.popitem(last=False)
            self._num_bytes -= size
            if isinstance(entry, WaitingPage):
                yield self._complete_page(entry)

    def _find(self, key: str) -> tuple[list[str], Picture | None]:
        """(the keys that were followed, the picture at their end or None)."""
        path = []
        for _ in range(1 + MAX_REDIRECTS):
            if key not in self._queue:
                key = _other_scheme(key)
            entry, _ = self._queue.get(key, (None, 0))
            if entry is None:
                break
            path.append(key)
            if isinstance(entry, Picture):
                return path, entry
            assert isinstance(entry, str)
            key = entry
        return path, None

    def _keep(self, key: str) -> None:
        """Move the picture of a key, and the redirects to it, to the end of the queue."""
        for followed in self._find(key)[0]:
            self._queue.move_to_end(followed)

    def _complete_page(self, waiting: WaitingPage) -> Page:
        """The page with its pictures from the queue, each URL once, and its references that need no search, each once."""
        images: dict[str | ImageRef, ImageRef] = {}
        for offered in waiting.wanted:
            if isinstance(offered, ImageRef):  # its URL may be cut
                images.setdefault(offered, offered)
            else:
                image = self._first(offered)
                images.setdefault(image.url, image)
        return replace(waiting.page, images=tuple(images.values()))

    def _first(self, urls: tuple[str, ...]) -> ImageRef:
        """The first URL whose picture has bytes, else the first URL with a record, else the first URL as NOT_IN_ARCHIVE."""
        pictures = [(url, self._find(url_key(url))[1]) for url in urls]
        recorded = [(url, picture) for url, picture in pictures if picture is not None]
        if not recorded:
            self.num_missing += 1
            return ImageRef(
                urls[0], problem=Reason.NOT_IN_ARCHIVE, detail="no record of this URL within the join window of the page"
            )
        self.num_found += 1
        url, picture = next(((url, picture) for url, picture in recorded if picture.data is not None), recorded[0])
        return ImageRef(url, problem=picture.problem, detail=picture.detail, data=picture.data)
