"""What robots.txt of each server allows us (RFC 9309), remembered within bounds.

Comes in: what the request for a robots.txt gave. Goes out: nothing, or a FetchFailed for a URL that is not to be requested. A 4xx
means that the server has no rules; when the server is broken, or cannot be reached, it is not asked for anything else either, and
the reason is the one that robots.txt met, since a dead host is no host that forbids.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

import yarl
from protego import Protego

from semantica.episodes.fetch_http import FetchFailed
from semantica.episodes.quarantine import Reason

MAX_BYTES = 500 * 1024  # what RFC 9309 (2.5) asks to be read at least; what is beyond counts for nothing
MAX_AGE_S = 24 * 3600.0  # RFC 9309, 2.4
REFUSAL_AGE_S = 3600.0  # a server that was broken may be well again
MAX_TOTAL = 4_000_000  # characters of all that is remembered; parsed they take up to 60 times as much
_ENTRY = 500  # characters an entry counts at least


@dataclass(frozen=True)
class Rules:
    """The rules of one server: `robots` when it has some, `refusal` when nothing may be requested."""

    robots: Protego | None = None
    refusal: FetchFailed | None = None
    size: int = _ENTRY
    made: float = 0.0

    def check(self, url: yarl.URL, product: str) -> None:
        """Raise FetchFailed when the URL is not to be requested by a robot of this name."""
        if self.refusal is not None:
            raise FetchFailed(self.refusal.reason, f"robots.txt: {self.refusal.detail}")
        if self.robots is not None and not self.robots.can_fetch(str(url), product):
            raise FetchFailed(Reason.ROBOTS, f"robots.txt of {url.host} disallows the URL")

    def crawl_delay_s(self, product: str) -> float:
        """The Crawl-delay for a robot of this name, 0 when there is none."""
        return (self.robots.crawl_delay(product) or 0.0) if self.robots is not None else 0.0


def rules_of(body: bytes) -> Rules:
    """The rules in the bytes of a robots.txt."""
    text = body[:MAX_BYTES].decode("utf-8", "replace").removeprefix("\ufeff")
    return Rules(robots=Protego.parse(text), size=len(text) + _ENTRY, made=time.monotonic())


def rules_without(error: FetchFailed) -> Rules:
    """The rules when the request for robots.txt gave no body."""
    status = error.status
    if error.reason == Reason.FETCH_STATUS and 400 <= status < 500 and status != 429:
        return Rules(made=time.monotonic())
    if error.reason == Reason.TOO_MANY_REDIRECTS:  # RFC 9309, 2.3.1.2: as if there were none
        return Rules(made=time.monotonic())
    if error.reason == Reason.FETCH_STATUS:  # the server is there, and does not say
        error = FetchFailed(Reason.ROBOTS, error.detail, status=status)
    return Rules(refusal=error, made=time.monotonic())


class Remembered:
    """The rules of the servers that were asked last, as many as fit MAX_TOTAL characters."""

    def __init__(self) -> None:
        self._rules: OrderedDict[str, Rules] = OrderedDict()
        self._total = 0

    def get(self, origin: str) -> Rules | None:
        """The rules of a server ("https://host:port"), None when they are not known or too old."""
        rules = self._rules.get(origin)
        if rules is None or time.monotonic() - rules.made > (REFUSAL_AGE_S if rules.refusal else MAX_AGE_S):
            return None
        self._rules.move_to_end(origin)
        return rules

    def put(self, origin: str, rules: Rules) -> None:
        """Remember the rules of a server, and forget the ones used longest ago."""
        if old := self._rules.pop(origin, None):
            self._total -= old.size
        self._rules[origin] = rules
        self._total += rules.size
        while self._total > MAX_TOTAL and len(self._rules) > 1:
            _, oldest = self._rules.popitem(last=False)
            self._total -= oldest.size
