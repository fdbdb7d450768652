"""What a server answered, as an archive keeps it: status, headers, and the body with its encodings undone, within a limit.

Used by `warc`. FastWARC 2.0.1 loses its place in the archive when it decodes a body itself and the body is damaged, so the body
is taken out first and decoded here, with its readers.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass

from fastwarc.stream_io import BrotliReader, ChunkedReader, WarcReader, ZstdReader
from fastwarc.warc import HeaderMap

from semantica.episodes.sources.html import ROBOTS_NAMES

MAX_HEADER_BYTES = 64 << 10
STEP = 1 << 20

# Directives of X-Robots-Tag that have a value after a colon; other words before a colon name a robot.
_VALUED = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})


class TooManyBytes(Exception):
    """A body that is larger than its reader wants."""


@dataclass(frozen=True)
class Answer:
    """Status line and headers of an HTTP response, and how many bytes they take."""

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
    except OSError:  # a header longer than any
        return None
    return Answer(headers.status_code, headers, num_bytes) if headers.status_code is not None else None


def resource(content_type: str) -> Answer:
    """What stands for the answer of a resource record: a file of this type, in full."""
    headers = HeaderMap()
    headers.append("Content-Type", content_type)
    return Answer(200, headers, 0)


def robots_tags(answer: Answer) -> tuple[str, ...]:
    """The directives of the X-Robots-Tag headers that are for all robots, or for one whose wishes we follow too, lower case."""
    found: dict[str, None] = {}
    for header in answer.headers.get_multiple("X-Robots-Tag"):
        ours = True
        for word in header.lower().split(","):
            name, colon, rest = word.partition(":")
            if colon and name.strip() not in _VALUED:
                ours, word = name.strip() in ROBOTS_NAMES, rest
            if ours and word.strip():
                found[word.strip()] = None
    return tuple(found)


def decoded(answer: Answer, body: bytes, limit: int) -> bytes:
    """The body with transfer and content encodings undone, as far as it is whole.

    A body that does not begin as its headers say is taken as it is: many crawlers store it decoded, under the old headers.
    Raises TooManyBytes when it holds more than `limit` bytes, ValueError for an encoding that is not known.
    """
    if "chunked" in answer.get("Transfer-Encoding").lower():
        body = _read(ChunkedReader(io.BytesIO(body)), body, limit)
    for encoding in reversed(answer.get("Content-Encoding").lower().split(",")):
        match encoding.strip():
            case "gzip" | "x-gzip" | "deflate":
                body = _inflate(body, limit)
            case "br":
                body = _read(BrotliReader(io.BytesIO(body)), body, limit)
            case "zstd":
                body = _read(ZstdReader(io.BytesIO(body)), body, limit)
            case "" | "identity" | "none" | "utf-8":  # the last two are mistakes that browsers forgive
                pass
            case other:
                raise ValueError(f"expected a known Content-Encoding, got {other[:40]!r}")
    if len(body) > limit:
        raise TooManyBytes
    return body


def _read(reader: WarcReader, otherwise: bytes, limit: int) -> bytes:
    """What the reader gives before its end or its first error, at most limit + 1 bytes; `otherwise` when that is nothing."""
    data = bytearray()
    try:
        while len(data) <= limit and (step := reader.read(min(STEP, limit + 1 - len(data)))):
            data += step
    except OSError:
        if not data:
            return otherwise
    return bytes(data)


def _inflate(body: bytes, limit: int) -> bytes:
    for wbits in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # gzip or zlib; then bare deflate, which some servers send
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
