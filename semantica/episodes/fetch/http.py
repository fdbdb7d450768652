"""One request of the fetcher: a checked URL goes in; an answer within the limits on bytes and time comes out, or a FetchFailed.

This module follows no redirects and retries nothing. It reads the body in pieces and decompresses it piece by piece, so that an
endless stream, or a small file that unpacks to a large one, never takes more memory than its limit. A header that forbids the use
of the picture ends the request before the body is read.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
import yarl
from multidict import CIMultiDictProxy

from semantica.episodes.fetch import FetchConfig
from semantica.episodes.fetch.address import Allowed, Blocked, Resolve, checked_connector
from semantica.episodes.quarantine import Reason, Refused

log = logging.getLogger(__name__)

CHUNK = 1 << 16
MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
# Directives by which a page or a picture opts out of collection or training.
OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
_WITH_VALUES = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


class FetchFailed(Refused):
    """A request that gave no body, and why. `may_pass`: the failure is temporary; retry after `retry_after_s` at the earliest.

    `leave_host`: the server asks for a longer pause than the settings allow.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        status: int = 0,
        may_pass: bool = False,
        retry_after_s: float = 0.0,
        leave_host: bool = False,
    ) -> None:
        super().__init__(reason, detail)
        self.status = status
        self.may_pass = may_pass
        self.retry_after_s = retry_after_s
        self.leave_host = leave_host


@dataclass(frozen=True)
class Answer:
    """The answer to one request: `location` of a redirect, or the decompressed `body` of a 200."""

    status: int
    body: bytes | None = None
    location: str = ""


class Client:
    """One aiohttp session: no proxies from the environment, no cookies, no redirects, allowed addresses only."""

    def __init__(self, config: FetchConfig, resolve: Resolve, allowed: Allowed) -> None:
        """Must be called inside the running event loop."""
        self._config = config
        self._session = aiohttp.ClientSession(
            connector=checked_connector(resolve, allowed),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            headers={"User-Agent": config.agent, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(sock_connect=config.connect_timeout_s, sock_read=config.read_timeout_s),
        )

    async def close(self) -> None:
        """Close every socket."""
        await self._session.close()

    async def picture(self, url: yarl.URL) -> Answer:
        """The answer to a GET of a checked URL. Raises FetchFailed."""
        return await self._get(url, "image/*, */*;q=0.5", self._config.respect_opt_out, truncate_at=0)

    async def robots(self, url: yarl.URL, max_bytes: int) -> Answer:
        """The answer to a GET of a robots.txt, its body cut at `max_bytes`. Raises FetchFailed."""
        return await self._get(url, "text/plain, */*;q=0.5", False, truncate_at=max_bytes)

    async def _get(self, url: yarl.URL, accept: str, heed: bool, *, truncate_at: int) -> Answer:
        try:
            async with asyncio.timeout(self._config.total_timeout_s):
                async with self._session.get(url, allow_redirects=False, headers={"Accept": accept}) as response:
                    return await self._read(response, heed, truncate_at)
        except Refused:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError; ValueError: a URL aiohttp refuses
            raise _failure_of(error) from None
        except Exception as error:  # an unknown server may provoke any error of the HTTP library; no URL may end a crawl
            log.warning("fetch: %s: unexpected %r", url, error, exc_info=True)
            raise FetchFailed(Reason.FETCH_FAILED, f"unexpected {type(error).__name__}: {error}") from None

    async def _read(self, response: aiohttp.ClientResponse, heed: bool, truncate_at: int) -> Answer:
        if heed and (opt_out := robots_directives(response.headers.getall("X-Robots-Tag", ()), self._config.product) & OPT_OUT):
            detail = f"the server says {', '.join(sorted(opt_out))} in X-Robots-Tag"
            raise FetchFailed(Reason.OPTED_OUT, detail, status=response.status)
        if response.status in (301, 302, 303, 307, 308) and (location := response.headers.get("Location")):
            return Answer(response.status, location=location)
        if response.status != 200:
            raise _bad_status(response.status, response.headers, self._config.max_retry_after_s)
        return Answer(200, body=await _body(response, self._config.max_bytes, self._config.max_body_bytes, truncate_at))


async def _body(response: aiohttp.ClientResponse, max_bytes: int, max_body_bytes: int, truncate_at: int) -> bytes:
    """The decompressed body. Raises FetchFailed when it is longer than a limit; `truncate_at` cuts it instead."""
    if not truncate_at and (response.content_length or 0) > max_bytes:
        raise FetchFailed(Reason.TOO_MANY_BYTES, f"Content-Length {response.content_length}, more than {max_bytes}", status=200)
    unpacker = _unpacker(response.headers)
    limit, most_sent = truncate_at or max_body_bytes, max(max_bytes, truncate_at)
    body, sent = bytearray(), 0
    async for piece in response.content.iter_chunked(CHUNK):
        sent += len(piece)
        body += unpacker.decompress(piece, limit + 1 - len(body)) if unpacker else piece
        if truncate_at and len(body) >= limit:
            return bytes(body[:limit])
        if sent > most_sent:
            raise FetchFailed(Reason.TOO_MANY_BYTES, f"more than {most_sent} bytes were sent", status=200)
        if len(body) > limit:
            raise FetchFailed(Reason.TOO_MANY_BYTES, f"more than {limit} bytes after decompression", status=200)
    if unpacker and not unpacker.eof:
        raise FetchFailed(Reason.FETCH_FAILED, "the compressed body ends too early", status=200, may_pass=True)
    return bytes(body)


class _Unpacker:
    """zlib with a limit on the output of each call. The first byte of deflate shows if it has a zlib header (RFC 9110, 8.4.1)."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._zlib = zlib.decompressobj(31 if coding != "deflate" else 15)
        self._first = True

    @property
    def eof(self) -> bool:
        """Whether the end of the compressed stream was seen."""
        return self._zlib.eof

    def decompress(self, piece: bytes, most: int) -> bytes:
        """At most `most` bytes of the unpacked piece. `most` is beyond the limit, so the remainder is never needed."""
        if self._first and self._coding == "deflate" and piece[0] & 0x0F != 8:
            self._zlib = zlib.decompressobj(-15)
        self._first = False
        try:
            data = self._zlib.decompress(piece, most)
        except zlib.error as error:
            raise FetchFailed(Reason.FETCH_FAILED, f"Content-Encoding {self._coding}: {error}", status=200) from None
        if self._zlib.unused_data:
            raise FetchFailed(Reason.FETCH_FAILED, f"Content-Encoding {self._coding}: bytes after the end", status=200)
        return data


def _unpacker(headers: CIMultiDictProxy[str]) -> _Unpacker | None:
    """The decoder for the Content-Encoding, None for no encoding. We ask for none, but some servers send gzip or deflate."""
    coding = ", ".join(headers.getall("Content-Encoding", ())).strip().lower()
    if coding in ("", "identity"):
        return None
    if coding in ("gzip", "x-gzip", "deflate"):
        return _Unpacker(coding)
    raise FetchFailed(Reason.FETCH_FAILED, f"Content-Encoding {coding!r}, expected none, gzip or deflate", status=200)


def _bad_status(status: int, headers: CIMultiDictProxy[str], max_retry_after_s: float) -> FetchFailed:
    wait_s = _retry_after_s(headers.get("Retry-After", ""))
    detail = f"status {status}, Retry-After {wait_s:.0f} s" if wait_s else f"status {status}"
    if status in MAY_PASS and wait_s > max_retry_after_s:
        return FetchFailed(Reason.FETCH_STATUS, detail, status=status, leave_host=True)
    may_pass = status in MAY_PASS
    return FetchFailed(Reason.FETCH_STATUS, detail, status=status, may_pass=may_pass, retry_after_s=wait_s if may_pass else 0.0)


def _retry_after_s(text: str) -> float:
    """The seconds of Retry-After, which is a number or a date; 0 when it is absent or unreadable."""
    if text.strip().isdecimal():
        return float(text[:12])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _failure_of(error: Exception) -> FetchFailed:
    """The FetchFailed for an exception of aiohttp, the resolver or a socket."""
    if isinstance(error, TimeoutError):
        return FetchFailed(Reason.FETCH_TIMEOUT, str(error) or "the request took too long", may_pass=True)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        may_pass = error.os_error.errno == socket.EAI_AGAIN
        return FetchFailed(Reason.FETCH_FAILED, f"name not resolved: {error.os_error}", may_pass=may_pass)
    if isinstance(error, (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch)):
        return FetchFailed(Reason.FETCH_FAILED, f"TLS: {error}")
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, Blocked):
        return FetchFailed(Reason.ADDRESS_BLOCKED, str(error.os_error))
    if isinstance(error, aiohttp.InvalidURL):
        return FetchFailed(Reason.BAD_URL, f"not a URL: {error}")
    if isinstance(error, aiohttp.ClientResponseError):
        return FetchFailed(Reason.FETCH_FAILED, f"not HTTP: {error.message}")
    # Connections that are refused or reset, bodies that end too early, a machine without free sockets.
    may_pass = isinstance(error, OSError | aiohttp.ClientConnectionError | aiohttp.ClientPayloadError)
    return FetchFailed(Reason.FETCH_FAILED, f"{type(error).__name__}: {error}", may_pass=may_pass)


def robots_directives(headers: Iterable[str], product: str) -> set[str]:
    """The directives of X-Robots-Tag headers, lower case, that address everyone or us ("product: noindex")."""
    directives: set[str] = set()
    for header in headers:
        for_us = True  # a name holds for the directives after it in the same header
        for item in header.lower().split(","):
            name, colon, rest = item.strip().partition(":")
            if colon and name.strip() not in _WITH_VALUES:
                for_us, item = name.strip() in ("*", product.lower()), rest
            if for_us:
                directives.add(item.strip())
    return directives
