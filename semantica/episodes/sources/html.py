"""A tree of saved web pages: every HTML file is one page, the pictures it shows are its pictures.

Comes in: files ending in .html, .htm, .xhtml with the pictures beside them, as `wget --mirror` or a documentation package leaves
them, for one host or (HOST/PATH) for many. Goes out: pages whose references are resolved as a browser would, but only to files
inside the tree. Nothing is fetched here: what is not in the tree keeps its absolute URL.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from selectolax.lexbor import LexborHTMLParser, LexborNode

from semantica.data.location import Location, location
from semantica.episodes.pages import ImageRef, Page, Part, ReadConfig
from semantica.episodes.quarantine import Reason, utf8
from semantica.episodes.sources.charset import page_text
from semantica.episodes.sources.srcset import Candidate, parse_srcset
from semantica.episodes.sources.tree import Tree, fingerprint, join, open_tree
from semantica.errors import DataError

EXTENSIONS = frozenset({".html", ".htm", ".xhtml"})
MAX_PAGE_BYTES = 64 << 20  # a page larger than this is a dump, not a page; the parser needs several times its size
LAZY_ATTRIBUTES = ("data-src", "data-original", "data-lazy-src")  # where scripts that load late keep the real URL
# The robots that a page may address by name; what is said to any of them is taken as said to us, who are none of them.
ROBOTS_NAMES = frozenset({"robots", "googlebot", "googlebot-image", "bingbot", "ccbot", "gptbot"})

_HOST = re.compile(r"([a-z0-9-]+\.)+[a-z]{2,}(:[0-9]+)?\Z")


class HtmlSource:
    """One page for every HTML file under the root; page_url is its path relative to the root."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """Runs of `pages_per_part` HTML files, in the order of their paths. Lists the whole tree, opens nothing.

        Any page may show any picture of the tree, so the fingerprint of every part is that of the whole tree.
        Raises DataError when the root is missing or holds no HTML file.
        """
        sizes = [(join(folder, name), size) for folder, files in open_tree(root).walk() for name, size in files.items()]
        pages = sorted(path for path, _ in sizes if PurePosixPath(path).suffix.lower() in EXTENSIONS)
        if not pages:
            raise DataError(f"ingest: no pages under {root}; expected files ending in {' '.join(sorted(EXTENSIONS))}")
        whole = fingerprint(sizes)
        step = settings.pages_per_part
        return [Part(tuple(pages[start : start + step]), fingerprint=whole) for start in range(0, len(pages), step)]

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """The pages in the part's files."""
        files = open_tree(root)
        for path in part.paths:
            yield read_page(files, path)


def read_page(files: Tree, relative: str) -> Page:
    """The page in one HTML file, its pictures in the order of the document, each URL once.

    One `<img>` or `<picture>` is one picture, whatever number of files it offers. An element without any URL shows nothing and
    does not count. A file that cannot be read gives a page with a problem.
    """
    page_url = utf8(relative)
    file = files.image_ref(relative)  # the same rule as for pictures: never a file outside the root
    if file.problem:
        return Page(page_url, (), Reason.PAGE_UNREADABLE, file.detail)
    try:
        with location(file.path).open("rb") as stream:
            data = stream.read(MAX_PAGE_BYTES + 1)
    except OSError as error:
        return Page(page_url, (), Reason.PAGE_UNREADABLE, error.strerror or str(error))
    if len(data) > MAX_PAGE_BYTES:
        return Page(page_url, (), Reason.PAGE_UNREADABLE, f"expected at most {MAX_PAGE_BYTES} bytes, got more")
    try:
        tree = parse(data)
    except Exception as error:  # noqa: BLE001 - a parser's error over untrusted bytes is a fact about the page
        return Page(page_url, (), Reason.PAGE_UNREADABLE, f"{type(error).__name__}: {error}")
    base = _base(tree, posixpath.dirname(relative))
    images: dict[tuple[str, str], ImageRef] = {}
    for candidates in picture_candidates(tree):
        key, image = _best(files, base, candidates)
        images.setdefault(key, image)
    return Page(page_url, tuple(images.values()), opt_out=robots_directives(tree))


def parse(data: bytes, charset: str = "") -> LexborHTMLParser:
    """The tree of a page in whatever encoding; `charset` is what HTTP declared, if anything.

    The parser's own detection is not used: it takes any codec of Python that the page names.
    """
    return LexborHTMLParser(page_text(data, charset))


# --- which files a page offers for each picture ---


def picture_candidates(tree: LexborHTMLParser) -> Iterator[list[Candidate]]:
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


def base_href(tree: LexborHTMLParser) -> str | None:
    """The `href` of the first `<base>` that has one, as it was written; None when the page has none."""
    node = tree.css_first("base[href]")
    return None if node is None else node.attributes.get("href") or ""


def robots_directives(tree: LexborHTMLParser) -> tuple[str, ...]:
    """What the page asks of robots: the directives of its `<meta name="robots">` and kin, lower case, each once, in order."""
    found: dict[str, None] = {}
    for node in tree.css("meta[name][content]"):
        if (node.attributes.get("name") or "").strip().lower() in ROBOTS_NAMES:
            words = (node.attributes.get("content") or "").lower().split(",")
            found.update((word.strip(), None) for word in words if word.strip())
    return tuple(found)


# --- where a URL leads ---


@dataclass(frozen=True)
class _Base:
    """What relative URLs of a page start from: a folder of the tree, or the absolute URL of a remote `<base>`."""

    folder: str
    remote: str = ""


@dataclass(frozen=True)
class _Target:
    """What a URL of a page means: files of the tree to try in turn, an absolute URL, both (a mirror of hosts), or a problem."""

    paths: tuple[str, ...] = ()  # relative to the root, decoded, not yet normalised
    remote: str = ""
    problem: str = ""
    detail: str = ""


def _base(tree: LexborHTMLParser, folder: str) -> _Base:
    """The first `<base href>` of the page, else the page's own folder; an unusable base is ignored, as in browsers."""
    href = base_href(tree)
    target = _target(href, _Base(folder)) if href else _Target()
    if target.remote:
        return _Base("", target.remote)
    if target.paths:
        # "a/b.html" and "a/" are both the folder "a"; a base that climbs out of the root stays out and is refused later.
        return _Base(posixpath.normpath(posixpath.dirname(target.paths[-1]) or "."))
    return _Base(folder)


def _best(files: Tree, base: _Base, candidates: list[Candidate]) -> tuple[tuple[str, str], ImageRef]:
    """(key by which duplicates are found, reference) of the first candidate with a file, else of the first, with its problem.

    Mirrors often hold one size of several, so a missing best candidate does not lose the picture.
    """
    resolved = [(candidate.url, _resolve(files, base, candidate.url)) for candidate in candidates]
    url, image = next((found for found in resolved if found[1].path), resolved[0])
    # What leads nowhere is told apart as it is written, and from the files: "a.png" may be missing here and be a file elsewhere.
    return (image.problem, image.url if image.path or image.problem == Reason.REMOTE_URL else url), image


def _resolve(files: Tree, base: _Base, url: str) -> ImageRef:
    """The reference a URL of a page stands for: a file inside the root, or a problem with the URL as it was written.

    The URL of a remote picture is absolute, so that it can be fetched. A data: URL is refused, not decoded: on real pages it is a
    placeholder or an icon, and it has no address to store.
    """
    target = _target(url, base)
    image = ImageRef(utf8(url[:200]), problem=target.problem, detail=target.detail)
    for path in target.paths:
        image = files.image_ref(posixpath.normpath(path))
        if image.path:
            return image
    if target.remote:
        return ImageRef(utf8(target.remote), problem=Reason.REMOTE_URL, detail="not fetched")
    return replace(image, url=utf8(url)) if target.paths else image


def _target(url: str, base: _Base) -> _Target:
    """What the URL means on a page with this base."""
    url = re.sub(r"[\t\n\r]", "", url.strip())
    if url[:5].lower() == "data:":
        return _Target(problem=Reason.DATA_URL, detail="inline data")
    try:
        url = url.replace("\\", "/")  # as browsers do; pages written on Windows need it
        parts = urlsplit(url)
        if base.remote and (parts.netloc or parts.path) and not parts.scheme:
            parts = urlsplit(urljoin(base.remote, url))
    except ValueError as error:
        return _Target(problem=Reason.BAD_URL, detail=str(error))
    if parts.netloc and parts.scheme in ("http", "https", "ftp", ""):
        absolute = parts._replace(scheme=parts.scheme or "https", fragment="")
        host = parts.netloc.rpartition("@")[2].lower()  # `wget --mirror` writes the tree HOST/PATH
        return _Target(_names(f"{host}/{_decoded(parts.path).lstrip('/')}", parts.query), urlunsplit(absolute))
    if parts.scheme == "file":
        return _Target(problem=Reason.OUTSIDE_ROOT, detail="a file: URL names a place on the author's machine")
    if parts.scheme:
        return _Target(problem=Reason.BAD_URL, detail=f"expected a path or http(s)://HOST, got scheme {parts.scheme!r}")
    if not parts.path:
        return _Target(problem=Reason.BAD_URL, detail="expected a path, got none")
    path = _decoded(parts.path)
    if not path.startswith("/"):
        return _Target(_names(posixpath.join(base.folder, path), parts.query))
    host = base.folder.partition("/")[0]  # the page's own, in a mirror of hosts; else the root of the tree is the site's
    inside = _names(f"{host}{path}", parts.query) if _HOST.match(host) else ()
    return _Target((*_names(path.lstrip("/"), parts.query), *inside))


def _names(path: str, query: str) -> tuple[str, ...]:
    """The files that a URL may be saved as: `a.png?v=3`, as wget names it (a slash in the query escaped), or `a.png`."""
    return (f"{path}?{_decoded(query).replace('/', '%2F')}", path) if query else (path,)


def _decoded(text: str) -> str:
    """Names on disk are bytes: %E9 is a byte of the name whether or not it is UTF-8."""
    return unquote(text, errors="surrogateescape")
