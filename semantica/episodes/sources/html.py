"""A tree of saved web pages: every HTML file is one page, the pictures it shows are its pictures.

Comes in: files ending in .html, .htm, .xhtml with the pictures beside them, as `wget --mirror` or a documentation package leaves
them. Goes out: pages whose references are resolved as a browser would, but only to files inside the tree. Nothing is fetched.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from selectolax.lexbor import LexborHTMLParser, LexborNode

from semantica.episodes.pages import ImageRef, Page
from semantica.episodes.quarantine import Reason, utf8
from semantica.episodes.sources.srcset import Candidate, parse_srcset
from semantica.episodes.sources.tree import image_ref, join, walk
from semantica.errors import DataError

EXTENSIONS = frozenset({".html", ".htm", ".xhtml"})
MAX_PAGE_BYTES = 64 << 20  # a page larger than this is a dump, not a page; the parser needs several times its size
LAZY_ATTRIBUTES = ("data-src", "data-original", "data-lazy-src")  # where scripts that load late keep the real URL

_DECLARES_ENCODING = re.compile(rb"(?i)\A(\xef\xbb\xbf|\xfe\xff|\xff\xfe)|charset")
_XML_ENCODING = re.compile(rb"""\A\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")


def html_pages(root: Path) -> list[Page]:
    """One page for every HTML file under the root; page_url is its path relative to the root.

    Raises DataError when the root is missing or holds no HTML file.
    """
    return [read_page(root, relative) for relative in html_files(root)]


def html_files(root: Path) -> list[str]:
    """The paths, relative to the root, of its HTML files, sorted: cheap, where `read_page` may be spread over workers."""
    files = [
        join(folder, name) for folder, names in walk(root) for name in names if PurePosixPath(name).suffix.lower() in EXTENSIONS
    ]
    if not files:
        raise DataError(f"ingest: no pages under {root}; expected files ending in {' '.join(sorted(EXTENSIONS))}")
    return sorted(files)


def read_page(root: Path, relative: str) -> Page:
    """The page in one HTML file, its pictures in the order of the document, each URL once.

    One `<img>` or `<picture>` is one picture, whatever number of files it offers. An element without any URL shows nothing and
    does not count. A file that cannot be read gives a page with a problem.
    """
    page_url = utf8(relative)
    file = image_ref(root, relative)  # the same rule as for pictures: never a file outside the root
    if file.problem:
        return Page(page_url, (), Reason.PAGE_UNREADABLE, file.detail)
    try:
        if os.path.getsize(file.path) > MAX_PAGE_BYTES:
            return Page(
                page_url, (), Reason.PAGE_UNREADABLE, f"expected at most {MAX_PAGE_BYTES} bytes, got {os.path.getsize(file.path)}"
            )
        tree = parse(Path(file.path).read_bytes())
    except OSError as error:
        return Page(page_url, (), Reason.PAGE_UNREADABLE, error.strerror or str(error))
    except Exception as error:  # noqa: BLE001 - a parser's error over untrusted bytes is a fact about the page
        return Page(page_url, (), Reason.PAGE_UNREADABLE, f"{type(error).__name__}: {error}")
    base = _base(tree, posixpath.dirname(relative))
    images: dict[str, ImageRef] = {}
    for candidates in _pictures(tree):
        key, image = _best(root, base, candidates)
        images.setdefault(key, image)
    return Page(page_url, tuple(images.values()))


def parse(data: bytes) -> LexborHTMLParser:
    """The tree of a page in whatever encoding: BOM, then `<meta>`, then the XML declaration, then UTF-8, then windows-1252."""
    if not _DECLARES_ENCODING.search(data[:1024]):
        declared = _XML_ENCODING.match(data[:1024])
        for encoding in ([declared[1].decode()] if declared else []) + ["utf-8"]:
            try:
                return LexborHTMLParser(data.decode(encoding))
            except (LookupError, UnicodeDecodeError):
                continue  # a name that is no text encoding, or bytes that are not in it: the next guess, as browsers do
        return LexborHTMLParser(data.decode("windows-1252", "replace"))
    return LexborHTMLParser(data, encoding=True)  # the HTML Standard's own detection


# --- which files a page offers for each picture ---


def _pictures(tree: LexborHTMLParser) -> Iterator[list[Candidate]]:
    """The candidates of every picture in the document, the best first; pictures without any URL are left out."""
    taken: set[int] = set()
    for node in tree.css("picture, img"):
        if node.mem_id in taken:  # inside a <picture>, which came before it
            continue
        parts = node.css("source, img, picture") if node.tag == "picture" else [node]
        taken.update(part.mem_id for part in parts)
        candidates = [candidate for part in parts for candidate in _candidates(part)]
        if candidates:
            # Stable: among equals the document's order decides, which in <picture> is the author's preference.
            yield sorted(candidates, key=lambda candidate: candidate.size, reverse=True)


def _candidates(node: LexborNode) -> list[Candidate]:
    """What an `<img>` or `<source>` offers. A lazy page's `data-*` comes before the placeholder that stands in `src`."""
    attributes = node.attributes
    sets = [c for name in ("data-srcset", "srcset") for c in parse_srcset(attributes.get(name) or "")]
    names = (*LAZY_ATTRIBUTES, "src") if node.tag == "img" else ()  # a <source> in <picture> has no src
    single = [(attributes.get(name) or "").strip() for name in names]
    return sets + [Candidate(url) for url in single if url]


# --- where a URL leads ---


@dataclass(frozen=True)
class _Base:
    """What relative URLs of a page start from: a folder of the tree, or a remote address."""

    folder: str
    remote: bool = False


def _base(tree: LexborHTMLParser, folder: str) -> _Base:
    """The first `<base href>` of the page, else the page's own folder."""
    for node in tree.css("base[href]"):
        kind, path = _split(node.attributes.get("href") or "", _Base(folder))
        if kind == Reason.REMOTE_URL:
            return _Base("", remote=True)
        if kind is None:
            # "a/b.html" and "a/" are both the folder "a"; a base that climbs out of the root stays out and is refused later.
            return _Base(posixpath.normpath(posixpath.dirname(path) or "."))
        return _Base(folder)  # an unusable base is ignored, as in browsers
    return _Base(folder)


def _best(root: Path, base: _Base, candidates: list[Candidate]) -> tuple[str, ImageRef]:
    """(key by which duplicates are found, reference) of the first candidate with a file, else of the first, with its problem.

    Mirrors often hold one size of several, so a missing best candidate does not lose the picture.
    """
    resolved = [(candidate.url, _resolve(root, base, candidate.url)) for candidate in candidates]
    url, image = next((found for found in resolved if found[1].path), resolved[0])
    return (image.url if image.path else url), image


def _resolve(root: Path, base: _Base, url: str) -> ImageRef:
    """The reference a URL of a page stands for: a file inside the root, or a problem with the URL as it was written.

    A data: URL is refused, not decoded: on real pages it is a placeholder or an icon, and it has no address to store.
    """
    problem, path = _split(url, base)
    if problem is not None:
        return ImageRef(utf8(url[:200]), "", problem, "inline data" if problem == Reason.DATA_URL else path)
    image = image_ref(root, posixpath.normpath(path))
    return image if image.path else ImageRef(utf8(url), "", image.problem, image.detail)


def _split(url: str, base: _Base) -> tuple[Reason | None, str]:
    """(None, path relative to the root, decoded, not yet normalised), or (what is wrong with the URL, detail)."""
    url = re.sub(r"[\t\n\r]", "", url.strip())
    if url[:5].lower() == "data:":
        return Reason.DATA_URL, ""
    try:
        parts = urlsplit(url.replace("\\", "/"))  # as browsers do; pages written on Windows need it
    except ValueError as error:
        return Reason.BAD_URL, str(error)
    if parts.scheme in ("http", "https", "ftp") or (parts.netloc and not parts.scheme):
        return Reason.REMOTE_URL, "not fetched"
    if parts.scheme == "file":
        return Reason.OUTSIDE_ROOT, "a file: URL names a place on the author's machine"
    if parts.scheme:
        return Reason.BAD_URL, f"expected a path or http(s), got scheme {parts.scheme!r}"
    if base.remote:
        return Reason.REMOTE_URL, "relative to a remote <base>, not fetched"
    if not parts.path:
        return Reason.BAD_URL, "expected a path, got none"
    # Names on disk are bytes: %E9 is a byte of the name whether or not it is UTF-8.
    path = unquote(parts.path, errors="surrogateescape")
    return None, path.lstrip("/") if path.startswith("/") else posixpath.join(base.folder, path)
