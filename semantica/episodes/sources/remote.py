"""Remote pictures, of which a source has only a URL: an absolute http(s) URL for the fetcher, or the problem with it.

Used by the sources whose tables hold URLs (OBELICS, MMC4, OmniCorpus, WIT, failed downloads of img2dataset).

`Gatherer` combines rows with one picture each into pages (WIT, webdataset): the pictures of one page URL that lie near each other
in a file. A remote URL is kept once per page. Pictures with bytes are all kept, and so are pictures without a URL. Memory is
bounded: when the waiting pages exceed the window, the page that was longest without a new picture is complete. When its page URL
comes again later, it gives another page with the same page_url and another piece.
"""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from semantica.episodes.pages import ImageRef, Page
from semantica.episodes.quarantine import Reason, utf8

MAX_SHOWN = 200  # characters of a data: URL that are kept as its name

# The problems of references that are only a URL. With other problems, the crawl has, or had, bytes for the picture.
_ONLY_NAMED = frozenset({Reason.REMOTE_URL, Reason.NOT_IN_ARCHIVE, Reason.DATA_URL, Reason.BAD_URL})


def remote_image(url: object, detail: str = "not fetched") -> ImageRef:
    """The reference to a picture on the web: REMOTE_URL, or DATA_URL or BAD_URL when it cannot be fetched."""
    if not isinstance(url, str):
        return ImageRef("", problem=Reason.BAD_URL, detail=f"expected a URL, got {type(url).__name__}")
    url = utf8(url.strip())
    if url[:5].lower() == "data:":
        return ImageRef(url[:MAX_SHOWN], problem=Reason.DATA_URL, detail=_inline(url))
    try:
        parts = urlsplit(url)
        complete = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError as error:
        return ImageRef(url, problem=Reason.BAD_URL, detail=str(error))
    if not complete:
        return ImageRef(url, problem=Reason.BAD_URL, detail="expected an absolute http(s) URL")
    return ImageRef(url, problem=Reason.REMOTE_URL, detail=detail)


def _inline(url: str) -> str:
    """The detail for a data: URL. A URL that is cut gets its digest, which distinguishes it from others with the same beginning."""
    if len(url) <= MAX_SHOWN:
        return "inline data"
    return f"inline data of {len(url)} characters, SHA-256 {hashlib.sha256(url.encode()).hexdigest()[:32]}"


def shared_name(image: ImageRef) -> str:
    """The key by which a page holds a picture once; "" for a picture that is never merged with another.

    Only references that are just a URL have a key. References without a URL may differ, and so may pictures with bytes: one URL
    may have been downloaded twice, with different content.
    """
    if image.problem not in _ONLY_NAMED:
        return ""
    return f"{image.url} {image.detail}" if image.problem == Reason.DATA_URL else image.url


def unique_images(images: Iterable[ImageRef]) -> tuple[ImageRef, ...]:
    """The pictures in their order, each remote URL once (see shared_name)."""
    unique: dict[object, ImageRef] = {}
    for number, image in enumerate(images):
        unique.setdefault(shared_name(image) or number, image)
    return tuple(unique.values())


def page_name(url: object, otherwise: str) -> tuple[str, bool]:
    """(page_url, has_url) of a page: the URL in its row, or the name `otherwise` when there is none."""
    if isinstance(url, str) and url.strip():
        return utf8(url.strip()), True
    return otherwise, False


REF_BYTES = 500  # memory of an ImageRef and its dict entry, without its texts and data


@dataclass
class _Waiting:
    piece: str
    images: dict[object, ImageRef] = field(default_factory=dict)
    num_bytes: int = 2 * REF_BYTES


class Gatherer:
    """The pages that are not yet complete."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._num_bytes = 0
        self._pages: OrderedDict[str, _Waiting] = OrderedDict()

    def add(self, page_url: str, image: ImageRef, piece: str) -> Iterator[Page]:
        """Add a picture, and yield the pages that are complete then. `piece` is used when the picture is the first of its page."""
        page = self._pages.get(page_url)
        if page is None:
            page = self._pages[page_url] = _Waiting(piece)
            page.num_bytes += sys.getsizeof(page_url)
            self._num_bytes += page.num_bytes
        self._pages.move_to_end(page_url)
        name = shared_name(image) or len(page.images)
        if name not in page.images:
            size = REF_BYTES + sys.getsizeof(image.url) + len(image.data or b"")
            page.images[name] = image
            page.num_bytes += size
            self._num_bytes += size
        while self._num_bytes > self.max_bytes:
            yield self._oldest()

    def rest(self) -> Iterator[Page]:
        """All waiting pages, at the end of the file."""
        while self._pages:
            yield self._oldest()

    def _oldest(self) -> Page:
        page_url, page = self._pages.popitem(last=False)
        self._num_bytes -= page.num_bytes
        return Page(page_url, tuple(page.images.values()), piece=page.piece)
