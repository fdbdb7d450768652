"""The pages and the pictures of an archive, which come as separate records in any order, joined by URL within a window.

Used by `warc`. All that waits is one queue in the order of the records: pages for their pictures, pictures for pages. It holds
at most a given number of bytes; beyond that the oldest leaves: a page with what was found for it, a picture for good. A picture
that a page asks for moves to the end of the queue and so outlives that page. Hence a picture is found when it lies less than a
window away from its page, before or after, or from another page that shows it and is itself that near.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import quote, urldefrag, urlsplit, urlunsplit

from semantica.episodes.pages import ImageRef, Page
from semantica.episodes.quarantine import Reason

ENTRY_BYTES = 400  # what an entry, or a URL of a page, takes beside its texts and data
MAX_REDIRECTS = 5

_ESCAPE = re.compile(r"%[0-9a-fA-F]{2}")
_PORTS = {"http": 80, "https": 443}


def url_key(url: str) -> str:
    """The form of an absolute http(s) URL under which all ways to write it meet; "" when it is none.

    Without its fragment and the scheme's own port, scheme and host in lower case, all but ASCII escaped.
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
        _ESCAPE.sub(lambda found: found[0].upper(), quote(text, safe="%/:=&?~+!$,;'@()*[]|", errors="surrogateescape"))
        for text in (parts.path or "/", parts.query)
    )
    return urlunsplit((parts.scheme, host, path, query, ""))


def _other_scheme(key: str) -> str:
    return key.replace("https:", "http:", 1) if key.startswith("https:") else key.replace("http:", "https:", 1)


@dataclass(frozen=True)
class Picture:
    """A picture of the archive: its bytes, or why it has none that are of use."""

    data: bytes | None
    problem: str = ""
    detail: str = ""


@dataclass(frozen=True)
class WaitingPage:
    """A page and what it shows: for every picture the URLs it offers, the best first; or, in place, one that needs no search."""

    page: Page
    wanted: tuple[tuple[str, ...] | ImageRef, ...]


class Join:
    """The queue. `add_...` give the pages that leave it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_found = 0
        self.num_missing = 0
        self._num_bytes = 0
        self._num_pages = 0
        # key of a URL -> its picture, or the key that it leads to; number of a page -> the page. With the bytes each takes.
        self._queue: OrderedDict[str | int, tuple[Picture | WaitingPage | str, int]] = OrderedDict()

    def add_picture(self, url: str, picture: Picture) -> Iterator[Page]:
        """A picture's record was read. A later record of the same URL takes the place of the first."""
        self._put(url_key(url), picture, len(picture.data or b""))
        yield from self._shrink()

    def add_alias(self, url: str, target: str) -> Iterator[Page]:
        """The URL leads to another: a redirect, or a revisit record."""
        key, leads_to = url_key(url), url_key(target)
        if leads_to and key != leads_to:
            self._keep(leads_to)
            self._put(key, leads_to, len(leads_to))
        else:
            self._keep(key)
        yield from self._shrink()

    def add_page(self, page: WaitingPage) -> Iterator[Page]:
        """A page's record was read."""
        urls = [url for offered in page.wanted for url in ((offered.url,) if isinstance(offered, ImageRef) else offered)]
        self._num_pages += 1
        self._put(self._num_pages, page, sum(ENTRY_BYTES + len(url) for url in urls))
        for url in urls:  # after the page is in the queue: what it shows must be behind it
            self._keep(url_key(url))
        yield from self._shrink()

    def rest(self) -> Iterator[Page]:
        """The pages that are left, at the end of the archive."""
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
        """(the keys that were followed, the picture at their end, if it is there)."""
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
        """Let the picture at a key, and what leads to it, live as long as what came last."""
        for followed in self._find(key)[0]:
            self._queue.move_to_end(followed)

    def _complete_page(self, waiting: WaitingPage) -> Page:
        """The page with the pictures that are in the queue, each URL once; of those that need no search, each that is unlike."""
        images: dict[str | ImageRef, ImageRef] = {}
        for offered in waiting.wanted:
            if isinstance(offered, ImageRef):  # its URL may be cut
                images.setdefault(offered, offered)
            else:
                image = self._first(offered)
                images.setdefault(image.url, image)
        return replace(waiting.page, images=tuple(images.values()))

    def _first(self, urls: tuple[str, ...]) -> ImageRef:
        """The first of the URLs that has a picture, else the first that the archive knows, else the first, not found."""
        found = [(url, self._find(url_key(url))[1]) for url in urls]
        known = [(url, picture) for url, picture in found if picture is not None]
        if not known:
            self.num_missing += 1
            return ImageRef(
                urls[0], problem=Reason.NOT_IN_ARCHIVE, detail="no record of this URL within the join window of the page"
            )
        self.num_found += 1
        url, picture = next(((url, picture) for url, picture in known if picture.data is not None), known[0])
        return ImageRef(url, problem=picture.problem, detail=picture.detail, data=picture.data)
