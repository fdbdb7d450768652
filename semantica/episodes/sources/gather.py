"""Rows that come one picture at a time, gathered into pages: the pictures of one page URL that lie near each other in a file.

Used by WIT and webdataset. A URL that is only named is kept once on a page; pictures with bytes are all kept, and so are those
without a URL. Memory is bounded: when what waits is more than the window holds, the page that was longest without a
new picture is complete. When it comes back later, that is another page with the same page_url and another piece.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from semantica.episodes.pages import ImageRef, Page
from semantica.episodes.sources.remote import shared_name

REF_BYTES = 500  # what an ImageRef and its places in a dict take, beside its texts and data


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
        """The pages that are complete now that the picture is kept; `piece` names the page if it is the first picture of one."""
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
        """All pages that still wait, at the end of the file."""
        while self._pages:
            yield self._oldest()

    def _oldest(self) -> Page:
        page_url, page = self._pages.popitem(last=False)
        self._num_bytes -= page.num_bytes
        return Page(page_url, tuple(page.images.values()), piece=page.piece)
