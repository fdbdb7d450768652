"""A tree of saved web pages: every HTML file is one page, and the pictures that it shows are its pictures.

In: files ending in .html, .htm, .xhtml with their pictures, as saved by `wget --mirror` or shipped in a documentation package, for
one host or for many (HOST/PATH). Out: pages whose references are resolved as in a browser, but only to files inside the tree.
Nothing is fetched here: a picture that is not in the tree keeps its absolute URL.

The module has three parts:
- The encoding of a page. The page names its own encoding, so the name is untrusted, and some of Python's codecs are no encodings of
  the web (the time of punycode grows with the square of the page). Only the labels of the WHATWG Encoding Standard are used, each
  for the encoding that the standard gives it (Latin-1 is windows-1252). Other names are ignored.
- The candidates of a `srcset` attribute, the largest first, parsed as in browsers (HTML Standard, 4.8.4.3.10). A URL may hold
  commas, so the text cannot be split at them.
- The page and its pictures.
"""

from __future__ import annotations

import math
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
from semantica.episodes.sources import source
from semantica.episodes.sources.tree import Tree, fingerprint, join, open_tree
from semantica.errors import DataError

PRESCAN_BYTES = 1024  # at the start of a page, where the HTML Standard looks for the encoding

_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xfe\xff", "utf-16-be"), (b"\xff\xfe", "utf-16-le"))
_XML = re.compile(rb"""\A\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._:-]+)["']""")
_CONTENT = re.compile(r"""charset\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s;"']+))""", re.IGNORECASE)

# Python's codec -> the labels of the Encoding Standard, section 4.2. Where the standard's encoding is a superset of what its label
# says, so is the codec (cp932 for Shift_JIS). Not here: "replacement" (iso-2022-kr, hz-gb-2312, ...) and x-user-defined.
_LABELS = {
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8",
    "cp866": "866 cp866 csibm866 ibm866",
    "iso8859-2": "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2",
    "iso8859-3": "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3",
    "iso8859-4": "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4",
    "iso8859-5": "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 iso_8859-5:1988",
    "iso8859-6": "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 iso-8859-6-e iso-8859-6-i "
    "iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987",
    "iso8859-7": "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 iso88597 iso_8859-7 "
    "iso_8859-7:1987 sun_eu_greek",
    "iso8859-8": "csiso88598e csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-ir-138 iso8859-8 iso88598 iso_8859-8 "
    "iso_8859-8:1988 visual csiso88598i iso-8859-8-i logical",
    "iso8859-10": "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso8859-13": "iso-8859-13 iso8859-13 iso885913",
    "iso8859-14": "iso-8859-14 iso8859-14 iso885914",
    "iso8859-15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9",
    "iso8859-16": "iso-8859-16",
    "koi8-r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8-u": "koi8-ru koi8-u",
    "mac-roman": "csmacintosh mac macintosh x-mac-roman",
    "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp1250": "cp1250 windows-1250 x-cp1250",
    "cp1251": "cp1251 windows-1251 x-cp1251",
    "cp1252": "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 iso_8859-1 "
    "iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252",
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1254": "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5 "
    "windows-1254 x-cp1254",
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "gb18030": "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk gb18030",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc-jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "iso2022-jp": "csiso2022jp iso-2022-jp",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "cp949": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 windows-949",
    "utf-16-be": "unicodefffe utf-16be",
    "utf-16-le": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le",
}
_CODECS = {label: codec for codec, labels in _LABELS.items() for label in labels.split()}


def codec_of(label: str) -> str:
    """Python's codec for a label of the Encoding Standard; "" for another name."""
    return _CODECS.get(label.strip(" \t\n\f\r").lower(), "")


def page_text(data: bytes, declared: str = "") -> str:
    """The text of a page. Its encoding is, in this order: BOM, HTTP header, `<meta>`, XML declaration, UTF-8, windows-1252.

    Bytes that are invalid in a named encoding become U+FFFD.
    """
    for mark, codec in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(codec, "replace")
    if codec := codec_of(declared) or _codec_inside(data[:PRESCAN_BYTES]):
        return data.decode(codec, "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _codec_inside(start: bytes) -> str:
    """The codec named by the page's `<meta>` or XML declaration; "" when these name no encoding of the web."""
    labels = []
    if b"charset" in start.lower():
        for node in LexborHTMLParser(start.decode("latin-1")).css("meta[charset], meta[http-equiv][content]"):
            if (label := node.attributes.get("charset")) is not None:
                labels.append(label)
            elif (node.attributes.get("http-equiv") or "").strip().lower() == "content-type":
                match = _CONTENT.search(node.attributes.get("content") or "")
                labels += [text for text in match.groups() if text] if match else []
    if declared := _XML.match(start):
        labels.append(declared[1].decode("ascii"))
    codec = next(filter(None, map(codec_of, labels)), "")
    return "utf-8" if codec.startswith("utf-16") else codec  # the label is ASCII, so the page is not UTF-16 (HTML Standard)


_SPACE = " \t\n\f\r"
_WIDTH = re.compile(r"([0-9]+)w\Z")
_DENSITY = re.compile(r"(-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)x\Z")
_HEIGHT = re.compile(r"[0-9]+h\Z")


@dataclass(frozen=True)
class Candidate:
    """One URL for a picture, with its declared width (0: none) or pixel density (1 by default)."""

    url: str
    width_px: int = 0
    density: float = 1.0

    @property
    def size(self) -> tuple[int, float]:
        """The sort key of candidates: by declared width, then by density."""
        return self.width_px, self.density


def parse_srcset(text: str) -> list[Candidate]:
    """The candidates in the order of the text; those with invalid descriptors are left out, as in browsers."""
    candidates: list[Candidate] = []
    at = 0
    while True:
        while at < len(text) and text[at] in _SPACE + ",":
            at += 1
        if at == len(text):
            return candidates
        start = at
        while at < len(text) and text[at] not in _SPACE:
            at += 1
        url, descriptors = text[start:at], ""
        if url.endswith(","):
            url = url.rstrip(",")
        else:
            start = at
            at = _end_of_descriptors(text, at)
            descriptors = text[start:at]
        candidate = _candidate(url, descriptors.split())
        if candidate:
            candidates.append(candidate)


def _end_of_descriptors(text: str, at: int) -> int:
    """The index of the comma that ends the descriptors (outside of parentheses), or of the end of the text."""
    inside = False
    while at < len(text) and (inside or text[at] != ","):
        inside = text[at] == "(" or (inside and text[at] != ")")
        at += 1
    return at


def _candidate(url: str, descriptors: list[str]) -> Candidate | None:
    width: int | None = None
    density: float | None = None
    for word in descriptors:
        if (match := _WIDTH.match(word)) and width is None and density is None:
            width = int(match[1][:9])  # nine digits are more than any real width
            if not width:
                return None
        elif (match := _DENSITY.match(word)) and width is None and density is None:
            density = float(match[1])
            if density < 0 or not math.isfinite(density):
                return None
        elif not _HEIGHT.match(word):
            return None
    return Candidate(url, width or 0, 1.0 if density is None else density)


EXTENSIONS = frozenset({".html", ".htm", ".xhtml"})
MAX_PAGE_BYTES = 64 << 20  # a larger file is refused; the parser needs several times the size of the page
LAZY_ATTRIBUTES = ("data-src", "data-original", "data-lazy-src")  # attributes with the real URL on pages that load pictures late
# The robots that a page may address by name. Directives for any of them are obeyed here too.
ROBOTS_NAMES = frozenset({"robots", "googlebot", "googlebot-image", "bingbot", "ccbot", "gptbot"})

_HOST = re.compile(r"([a-z0-9-]+\.)+[a-z]{2,}(:[0-9]+)?\Z")


@source("html")
class HtmlSource:
    """One page per HTML file under the root; page_url is its path relative to the root."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """Runs of `pages_per_part` HTML files, in the order of their paths. Lists the whole tree, opens nothing.

        Any page may show any picture of the tree, so every part has the fingerprint of the whole tree. Raises DataError when the
        root is missing or holds no HTML file.
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

    One `<img>` or `<picture>` is one picture, however many files it offers. An element without any URL is ignored. A file that
    cannot be read gives a page with a problem.
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
    """The parsed tree of a page in any encoding. `charset` is the one that HTTP declared, or "".

    The parser's own detection is not used, since it accepts any codec of Python that the page names.
    """
    return LexborHTMLParser(page_text(data, charset))


# --- which files a page offers for each picture ---


def picture_candidates(tree: LexborHTMLParser) -> Iterator[list[Candidate]]:
    """The candidates for every picture in the document, the best first; pictures without any URL are left out."""
    taken: set[int] = set()
    for node in tree.css("picture, img"):
        if node.mem_id in taken:  # inside a <picture>, which came before it
            continue
        parts = node.css("source, img, picture") if node.tag == "picture" else [node]
        taken.update(part.mem_id for part in parts)
        candidates = [candidate for part in parts for candidate in _candidates(part)]
        if candidates:
            # The sort is stable: equal candidates stay in the document's order, which in <picture> is the author's preference.
            yield sorted(candidates, key=lambda candidate: candidate.size, reverse=True)


def _candidates(node: LexborNode) -> list[Candidate]:
    """The candidates of an `<img>` or `<source>`. The `data-*` of a lazy page come before `src`, which holds a placeholder."""
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
    """The page's directives for robots, from `<meta name="robots">` and similar, lower case, each once, in order."""
    directives: dict[str, None] = {}
    for node in tree.css("meta[name][content]"):
        if (node.attributes.get("name") or "").strip().lower() in ROBOTS_NAMES:
            words = (node.attributes.get("content") or "").lower().split(",")
            directives.update((word.strip(), None) for word in words if word.strip())
    return tuple(directives)


# --- where a URL leads ---


@dataclass(frozen=True)
class _Base:
    """The base of a page's relative URLs: a folder of the tree, or the absolute URL of a remote `<base>`."""

    folder: str
    remote: str = ""


@dataclass(frozen=True)
class _Target:
    """The target of a URL: files of the tree to try in turn, an absolute URL, both (in a mirror of hosts), or a problem."""

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
        # "a/b.html" and "a/" both mean the folder "a". A base outside of the root is kept here and refused later.
        return _Base(posixpath.normpath(posixpath.dirname(target.paths[-1]) or "."))
    return _Base(folder)


def _best(files: Tree, base: _Base, candidates: list[Candidate]) -> tuple[tuple[str, str], ImageRef]:
    """(key for finding duplicates, reference) of the first candidate with a file, else of the first candidate, with its problem.

    Mirrors often hold only one of several sizes, so the picture is not lost when the best candidate is missing.
    """
    resolved = [(candidate.url, _resolve(files, base, candidate.url)) for candidate in candidates]
    url, image = next((pair for pair in resolved if pair[1].path), resolved[0])
    # Without a file, the key is the problem and the URL as written: a missing "a.png" must not equal a file "a.png" elsewhere.
    return (image.problem, image.url if image.path or image.problem == Reason.REMOTE_URL else url), image


def _resolve(files: Tree, base: _Base, url: str) -> ImageRef:
    """The reference for a URL of a page: a file inside the root, or a problem with the URL as written.

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
    """The target of the URL on a page with this base."""
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
        return _Target(_names(f"{host}/{_decode_name(parts.path).lstrip('/')}", parts.query), urlunsplit(absolute))
    if parts.scheme == "file":
        return _Target(problem=Reason.OUTSIDE_ROOT, detail="a file: URL names a place on the author's machine")
    if parts.scheme:
        return _Target(problem=Reason.BAD_URL, detail=f"expected a path or http(s)://HOST, got scheme {parts.scheme!r}")
    if not parts.path:
        return _Target(problem=Reason.BAD_URL, detail="expected a path, got none")
    path = _decode_name(parts.path)
    if not path.startswith("/"):
        return _Target(_names(posixpath.join(base.folder, path), parts.query))
    host = base.folder.partition("/")[0]  # in a mirror of hosts, the page's host; else the root of the tree is the site's root
    inside = _names(f"{host}{path}", parts.query) if _HOST.match(host) else ()
    return _Target((*_names(path.lstrip("/"), parts.query), *inside))


def _names(path: str, query: str) -> tuple[str, ...]:
    """The file names under which a URL may be saved: `a.png?v=3`, as by wget (a slash in the query escaped), or `a.png`."""
    return (f"{path}?{_decode_name(query).replace('/', '%2F')}", path) if query else (path,)


def _decode_name(text: str) -> str:
    """The unquoted text. Names on disk are bytes: %E9 is a byte of the name, even when it is not UTF-8."""
    return unquote(text, errors="surrogateescape")
