"""Pictures that a source only names: an absolute http(s) URL that the fetcher may get, or what is wrong with it.

Used by the sources whose tables carry URLs (OBELICS, MMC4, OmniCorpus, WIT, the failed downloads of img2dataset).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from urllib.parse import urlsplit

from semantica.episodes.pages import ImageRef
from semantica.episodes.quarantine import Reason, utf8

MAX_SHOWN = 200  # characters of a data: URL that are kept as its name

# Of a reference that is a URL and nothing more. With others the crawl has, or had, bytes of their own.
_ONLY_NAMED = frozenset({Reason.REMOTE_URL, Reason.NOT_IN_ARCHIVE, Reason.DATA_URL, Reason.BAD_URL})


def remote_image(url: object, detail: str = "not fetched") -> ImageRef:
    """The reference to a picture somewhere on the web: REMOTE_URL, or DATA_URL or BAD_URL when nothing can be fetched."""
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
    """What is said of a data: URL. Of one that is cut, its digest tells it apart from others that begin alike."""
    if len(url) <= MAX_SHOWN:
        return "inline data"
    return f"inline data of {len(url)} characters, SHA-256 {hashlib.sha256(url.encode()).hexdigest()[:32]}"


def shared_name(image: ImageRef) -> str:
    """What references to one picture have in common, so that a page has it once; "" for one that is like no other.

    Only references that are a URL and nothing more share a name. Those without a URL are not the same, and what has bytes of its
    own is not dropped unseen: one URL may have been got twice, with other content.
    """
    if image.problem not in _ONLY_NAMED:
        return ""
    return f"{image.url} {image.detail}" if image.problem == Reason.DATA_URL else image.url


def once(images: Iterable[ImageRef]) -> tuple[ImageRef, ...]:
    """The pictures in their order, each URL that is only named once (see shared_name)."""
    kept: dict[object, ImageRef] = {}
    for number, image in enumerate(images):
        kept.setdefault(shared_name(image) or number, image)
    return tuple(kept.values())


def page_name(url: object, otherwise: str) -> tuple[str, bool]:
    """(page_url, has_url) of a page: the URL that its row carries, or the other name when it carries none."""
    if isinstance(url, str) and url.strip():
        return utf8(url.strip()), True
    return otherwise, False
