"""WARC archives: what a crawler was answered, page and picture each a record of its own (ISO 28500; .warc, .warc.gz).

Comes in: response, resource and revisit records. Goes out: the HTML pages with the pictures they show, joined by URL within a
window of `join_window_mb` (see `join`), redirects followed as far as they are in the window too. What is not found keeps its URL,
with NOT_IN_ARCHIVE; how many is logged for every file. A file is one part and is read once, from its beginning to its end.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from urllib.parse import urldefrag, urljoin

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from semantica.data.location import Location
from semantica.episodes.pages import ImageRef, Page, Part, ReadConfig
from semantica.episodes.quarantine import DamagedFile, Reason, utf8
from semantica.episodes.sources.files import decompressed, label_of, list_parts, opened
from semantica.episodes.sources.html import MAX_PAGE_BYTES, base_href, parse, picture_candidates, robots_directives
from semantica.episodes.sources.http_answer import (
    MAX_HEADER_BYTES,
    Answer,
    TooManyBytes,
    decoded,
    parse_answer,
    resource,
    robots_tags,
)
from semantica.episodes.sources.join import Join, Picture, WaitingPage, url_key
from semantica.episodes.sources.remote import remote_image

log = logging.getLogger(__name__)

SUFFIXES = (".warc", ".warc.gz")
PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
UNSURE_TYPES = frozenset({"", "application/octet-stream", "binary/octet-stream"})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_RECORD_HEADER_BYTES = 1 << 20
MAX_LENGTH_DIGITS = 18  # of a Content-Length: an exabyte, and inside 64 bits
_KINDS = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.revisit
# How files of pictures begin: JPEG, PNG, GIF, WebP and AVIF (after a length), BMP, TIFF.
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


class WarcSource:
    """The Source of WARC archives."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """One part for every archive."""
        return list_parts(root, SUFFIXES, "WARC files")

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """The pages of an archive in the order of their records; `piece` is the file and the place of the record in it."""
        name = label_of(root, part)
        join = Join(settings.join_window_mb << 20)
        num_pages = 0
        with opened(root, part) as stream:
            for record in _records(decompressed(stream), name):
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
    """The records of an archive, each whole: FastWARC takes the end of the file for the end of a record and says nothing."""
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
    """Put what the record holds in the queue; the pages that leave it for that."""
    url = _header(record, b"WARC-Target-URI")
    if not url_key(url):
        return
    if record.record_type == WarcRecordType.revisit:
        yield from join.add_alias(url, _header(record, b"WARC-Refers-To-Target-URI") or url)
        return
    head = _read(record, MAX_HEADER_BYTES)
    # A resource record was got without HTTP: its block is the file.
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
    """A header that holds a URL. Old writers put it in angle brackets; its bytes need not be UTF-8."""
    value = (record.headers.get_bytes(name) or b"").decode("utf-8", "surrogateescape").strip()
    return value[1:-1] if value.startswith("<") and value.endswith(">") else value


def _read(record: WarcRecord, num_bytes: int) -> bytes:
    """The next bytes of the record; fewer only when it has no more."""
    data = bytearray()
    while len(data) < num_bytes and (step := record.reader.read(num_bytes - len(data))):
        data += step
    return bytes(data)


def _body(record: WarcRecord, answer: Answer, head: bytes, limit: int) -> bytes:
    """The body, decoded. Raises TooManyBytes, before it is read when its length says so already, and ValueError."""
    left = record.content_length - record.reader.tell()
    if len(head) + left > limit + MAX_HEADER_BYTES:  # chunks may be framed by some bytes more
        raise TooManyBytes
    return decoded(answer, head + _read(record, left), limit)


def _kind(answer: Answer, body: bytes) -> str:
    """ "page", "picture" or "" for neither, by the declared type, or by how the body begins when that says nothing."""
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
    """The page of a record, and what it shows."""
    page_url = utf8(url)
    try:
        tree = parse(_body(record, answer, head, MAX_PAGE_BYTES), answer.charset)
        opt_out = tuple(dict.fromkeys((*robots_tags(answer), *robots_directives(tree))))
        base = _absolute(url, base_href(tree) or "") or url
        wanted = tuple(dict.fromkeys(_wanted(base, [candidate.url for candidate in found]) for found in picture_candidates(tree)))
    except TooManyBytes:
        problem = f"expected at most {MAX_PAGE_BYTES} bytes, got more"
    except Exception as error:  # noqa: BLE001 - a parser's error over untrusted bytes is a fact about the page
        problem = f"{type(error).__name__}: {error}"
    else:
        return WaitingPage(Page(page_url, (), piece=piece, opt_out=opt_out), wanted)
    return WaitingPage(Page(page_url, (), Reason.PAGE_UNREADABLE, utf8(problem), piece), ())


def _wanted(base: str, offered: list[str]) -> tuple[str, ...] | ImageRef:
    """The absolute URLs of a picture that can be looked for, the best first; else the first URL, with its problem."""
    urls = [_absolute(base, url) for url in offered]
    found = tuple(dict.fromkeys(url for url in urls if url_key(url)))
    return found or remote_image(urls[0] or offered[0])


def _absolute(base: str, url: str) -> str:
    """The URL a page means, absolute, without its fragment; "" when it means none."""
    try:
        return urldefrag(urljoin(base, re.sub(r"[\t\n\r]", "", url.strip())))[0]
    except ValueError:
        return ""
