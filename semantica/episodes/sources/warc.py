"""WARC archives: the answers that a crawler got, with one record per page and per picture (ISO 28500; .warc, .warc.gz).

In: response, resource and revisit records. Out: the HTML pages with the pictures that they show, joined by URL within a window of
`join_window_mb` (see `join`). Redirects are followed when they are in the window too. A picture that is not found keeps its URL
with NOT_IN_ARCHIVE; their number is logged per file. A file is one part and is read once, from start to end.

The first half of the module reads one HTTP answer: status, headers, and the decoded body, within a limit. FastWARC 2.0.1 loses its
place in the archive when it decodes a damaged body itself. So the body is read first and decoded here, with FastWARC's readers.
"""

from __future__ import annotations

import io
import logging
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urldefrag, urljoin

from fastwarc.stream_io import BrotliReader, ChunkedReader, WarcReader, ZstdReader
from fastwarc.warc import ArchiveIterator, HeaderMap, WarcRecord, WarcRecordType

from semantica.data.location import Location
from semantica.episodes.pages import ImageRef, Page, Part, ReadConfig
from semantica.episodes.quarantine import DamagedFile, Reason, utf8
from semantica.episodes.sources import source
from semantica.episodes.sources.files import decompress, label_of, list_parts, open_part
from semantica.episodes.sources.html import MAX_PAGE_BYTES, ROBOTS_NAMES, base_href, parse, picture_candidates, robots_directives
from semantica.episodes.sources.join import Join, Picture, WaitingPage, url_key
from semantica.episodes.sources.remote import remote_image

MAX_HEADER_BYTES = 64 << 10
STEP = 1 << 20

# Directives of X-Robots-Tag that have a value after a colon. Other words before a colon name a robot.
_VALUED = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})


class TooManyBytes(Exception):
    """A body that is larger than its limit."""


@dataclass(frozen=True)
class Answer:
    """Status line and headers of an HTTP response, and the number of their bytes."""

    status: int
    headers: HeaderMap
    num_bytes: int

    def get(self, name: str) -> str:
        """The first header of this name, "" when there is none."""
        return (self.headers.get(name) or "").strip()

    @property
    def media_type(self) -> str:
        """The type of the content, lower case, without parameters."""
        return self.get("Content-Type").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str:
        """The encoding that the Content-Type declares, "" when it declares none."""
        for parameter in self.get("Content-Type").split(";")[1:]:
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "charset":
                return value.strip(" \t\"'")
        return ""


def parse_answer(head: bytes) -> Answer | None:
    """The answer that begins with these bytes; None when they are no HTTP response."""
    headers = HeaderMap()
    try:
        num_bytes = headers.parse(io.BytesIO(head))
    except OSError:  # a header that is too long
        return None
    return Answer(headers.status_code, headers, num_bytes) if headers.status_code is not None else None


def resource(content_type: str) -> Answer:
    """An answer for a resource record, which has none: status 200 with this content type."""
    headers = HeaderMap()
    headers.append("Content-Type", content_type)
    return Answer(200, headers, 0)


def robots_tags(answer: Answer) -> tuple[str, ...]:
    """The directives of the X-Robots-Tag headers for all robots or for one of ROBOTS_NAMES, lower case."""
    directives: dict[str, None] = {}
    for header in answer.headers.get_multiple("X-Robots-Tag"):
        ours = True
        for word in header.lower().split(","):
            name, colon, rest = word.partition(":")
            if colon and name.strip() not in _VALUED:
                ours, word = name.strip() in ROBOTS_NAMES, rest
            if ours and word.strip():
                directives[word.strip()] = None
    return tuple(directives)


def decode_body(answer: Answer, body: bytes, limit: int) -> bytes:
    """The body without transfer and content encodings, up to its first damage.

    A body that does not begin as its headers say is returned unchanged: many crawlers store it decoded, under the old headers.
    Raises TooManyBytes when it has more than `limit` bytes, ValueError for an unknown encoding.
    """
    if "chunked" in answer.get("Transfer-Encoding").lower():
        body = _read_body(ChunkedReader(io.BytesIO(body)), body, limit)
    for encoding in reversed(answer.get("Content-Encoding").lower().split(",")):
        match encoding.strip():
            case "gzip" | "x-gzip" | "deflate":
                body = _inflate(body, limit)
            case "br":
                body = _read_body(BrotliReader(io.BytesIO(body)), body, limit)
            case "zstd":
                body = _read_body(ZstdReader(io.BytesIO(body)), body, limit)
            case "" | "identity" | "none" | "utf-8":  # the last two are mistakes that browsers forgive
                pass
            case other:
                raise ValueError(f"expected a known Content-Encoding, got {other[:40]!r}")
    if len(body) > limit:
        raise TooManyBytes
    return body


def _read_body(reader: WarcReader, otherwise: bytes, limit: int) -> bytes:
    """The bytes of the reader up to its end or first error, at most limit + 1; `otherwise` when an error comes first."""
    data = bytearray()
    try:
        while len(data) <= limit and (step := reader.read(min(STEP, limit + 1 - len(data)))):
            data += step
    except OSError:
        if not data:
            return otherwise
    return bytes(data)


def _inflate(body: bytes, limit: int) -> bytes:
    for wbits in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # first gzip or zlib, then bare deflate, which some servers send
        inflate, data, rest = zlib.decompressobj(wbits), bytearray(), body
        try:
            while rest and len(data) <= limit and not inflate.eof:
                data += inflate.decompress(rest, min(STEP, limit + 1 - len(data)))
                rest = inflate.unconsumed_tail
        except zlib.error:
            if not data:
                continue
        return bytes(data)
    return body


log = logging.getLogger(__name__)

SUFFIXES = (".warc", ".warc.gz")
PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
UNSURE_TYPES = frozenset({"", "application/octet-stream", "binary/octet-stream"})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_RECORD_HEADER_BYTES = 1 << 20
MAX_LENGTH_DIGITS = 18  # of a Content-Length: an exabyte, and inside 64 bits
_KINDS = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.revisit
# (offset, bytes) at the start of picture files: JPEG, PNG, GIF, WebP and AVIF (after a length), BMP, TIFF.
_MAGIC = (
    (0, b"\xff\xd8\xff"),
    (0, b"\x89PNG"),
    (0, b"GIF8"),
    (8, b"WEBP"),
    (4, b"ftypavif"),
    (0, b"BM"),
    (0, b"II*\0"),
    (0, b"MM\0*"),
)


@source("warc")
class WarcSource:
    """The Source of WARC archives."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """One part per archive."""
        return list_parts(root, SUFFIXES, "WARC files")

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """The pages of an archive in the order in which they leave the window; `piece` is the file and the record's offset."""
        name = label_of(root, part)
        join = Join(settings.join_window_mb << 20)
        num_pages = 0
        with open_part(root, part) as stream:
            for record in _records(decompress(stream), name):
                for page in _join(record, join, name, settings):
                    num_pages += 1
                    yield page
        for page in join.rest():
            num_pages += 1
            yield page
        log.info(
            "ingest: %s: %d pages, %d pictures found, %d not found within %d MB",
            *(name, num_pages, join.num_found, join.num_missing, settings.join_window_mb),
        )


def _records(stream: io.BufferedReader, name: str) -> Iterator[WarcRecord]:
    """The records of an archive, each checked to be whole: FastWARC silently takes the end of the file for the end of a record."""
    for record in ArchiveIterator(stream, parse_http=False, stream_detect=False, max_header_len=MAX_RECORD_HEADER_BYTES):
        length = (record.headers.get("Content-Length") or "").strip()
        where = f"the record at byte {record.stream_pos}"
        if not (length.isascii() and length.isdigit() and len(length) <= MAX_LENGTH_DIGITS):
            raise DamagedFile(name, f"{where} has no Content-Length that can be; the file ends early, or this is no WARC")
        if record.record_type & _KINDS:
            yield record
        record.consume()
        if record.reader.tell() != int(length):
            raise DamagedFile(name, f"{where}: expected {length} bytes, got {record.reader.tell()}; the file ends early")


def _join(record: WarcRecord, join: Join, name: str, settings: ReadConfig) -> Iterator[Page]:
    """Add the record's content to the queue, and yield the pages that leave it."""
    url = _header(record, b"WARC-Target-URI")
    if not url_key(url):
        return
    if record.record_type == WarcRecordType.revisit:
        yield from join.add_alias(url, _header(record, b"WARC-Refers-To-Target-URI") or url)
        return
    head = _read(record, MAX_HEADER_BYTES)
    # A resource record was not fetched by HTTP: its block is the file.
    is_resource = record.record_type == WarcRecordType.resource
    answer = resource(record.headers.get("Content-Type") or "") if is_resource else parse_answer(head)
    if answer is None:
        return
    if answer.status in REDIRECTS:
        yield from join.add_alias(url, _absolute(url, answer.get("Location")))
        return
    if answer.status != 200:
        return
    head = head[answer.num_bytes :]
    kind = _kind(answer, head)
    if kind == "picture":
        yield from join.add_picture(url, _picture(record, answer, head, settings.max_image_bytes))
    elif kind == "page":
        yield from join.add_page(_page(record, answer, head, url, f"{name}@{record.stream_pos}"))


def _header(record: WarcRecord, name: bytes) -> str:
    """A header with a URL, without the angle brackets of old writers. Its bytes need not be UTF-8."""
    value = (record.headers.get_bytes(name) or b"").decode("utf-8", "surrogateescape").strip()
    return value[1:-1] if value.startswith("<") and value.endswith(">") else value


def _read(record: WarcRecord, num_bytes: int) -> bytes:
    """The next `num_bytes` of the record, fewer only at its end."""
    data = bytearray()
    while len(data) < num_bytes and (step := record.reader.read(num_bytes - len(data))):
        data += step
    return bytes(data)


def _body(record: WarcRecord, answer: Answer, head: bytes, limit: int) -> bytes:
    """The decoded body. Raises TooManyBytes, before reading when the record's length exceeds the limit, and ValueError."""
    left = record.content_length - record.reader.tell()
    if len(head) + left > limit + MAX_HEADER_BYTES:  # the framing of chunks may add some bytes
        raise TooManyBytes
    return decode_body(answer, head + _read(record, left), limit)


def _kind(answer: Answer, body: bytes) -> str:
    """ "page", "picture" or "" for neither, by the declared type, or by the first bytes of the body when the type is unsure."""
    if answer.media_type in PAGE_TYPES:
        return "page"
    if answer.media_type.startswith("image/"):
        return "picture"
    if answer.media_type in UNSURE_TYPES and any(body[at : at + len(mark)] == mark for at, mark in _MAGIC):
        return "picture"
    return ""


def _picture(record: WarcRecord, answer: Answer, head: bytes, limit: int) -> Picture:
    try:
        return Picture(_body(record, answer, head, limit))
    except TooManyBytes:
        return Picture(None, Reason.TOO_MANY_BYTES, f"expected at most {limit} bytes, got more")
    except ValueError as error:
        return Picture(None, Reason.UNDECODABLE, str(error))


def _page(record: WarcRecord, answer: Answer, head: bytes, url: str, piece: str) -> WaitingPage:
    """The page of a record, and the pictures that it shows."""
    page_url = utf8(url)
    try:
        tree = parse(_body(record, answer, head, MAX_PAGE_BYTES), answer.charset)
        opt_out = tuple(dict.fromkeys((*robots_tags(answer), *robots_directives(tree))))
        base = _absolute(url, base_href(tree) or "") or url
        offers = ([candidate.url for candidate in candidates] for candidates in picture_candidates(tree))
        wanted = tuple(dict.fromkeys(_wanted(base, urls) for urls in offers))
    except TooManyBytes:
        problem = f"expected at most {MAX_PAGE_BYTES} bytes, got more"
    except Exception as error:  # noqa: BLE001 - a parser's error over untrusted bytes is a fact about the page
        problem = f"{type(error).__name__}: {error}"
    else:
        return WaitingPage(Page(page_url, (), piece=piece, opt_out=opt_out), wanted)
    return WaitingPage(Page(page_url, (), Reason.PAGE_UNREADABLE, utf8(problem), piece), ())


def _wanted(base: str, offered: list[str]) -> tuple[str, ...] | ImageRef:
    """The absolute http(s) URLs of a picture, the best first; without any, the first URL with its problem."""
    urls = [_absolute(base, url) for url in offered]
    searchable = tuple(dict.fromkeys(url for url in urls if url_key(url)))
    return searchable or remote_image(urls[0] or offered[0])


def _absolute(base: str, url: str) -> str:
    """The absolute form of a page's URL, without its fragment; "" when there is none."""
    try:
        return urldefrag(urljoin(base, re.sub(r"[\t\n\r]", "", url.strip())))[0]
    except ValueError:
        return ""
