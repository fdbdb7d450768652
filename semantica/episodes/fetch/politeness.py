"""What robots.txt of each server allows us (RFC 9309), remembered within bounds.

Comes in: what the request for a robots.txt gave. Goes out: nothing, or a FetchFailed for a URL that is not to be requested. A 4xx
means that the server has no rules; when the server is broken, or cannot be reached, it is not asked for anything else either, and
the reason is the one that robots.txt met, since a dead host is no host that forbids.

Whose turn it is: the bounds of the fetcher on requests at once, in all and of one host, and on how often a host is asked.

A URL waits for its host here without taking one of the places in all (`slots`), so a slow host holds nobody else up; one that keeps
failing is left alone, so that it does not hold up its batch for hours. What is known of hosts outlives a call of the fetcher: plain
numbers in a bounded table.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import yarl
from protego import Protego

from semantica.episodes.fetch import FetchConfig
from semantica.episodes.fetch.http import FetchFailed
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


class RulesCache:
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


LEFT_S = 3600.0  # how long a host that kept failing is left alone


@dataclass
class _HostState:
    """What is remembered of a host. Times are those of time.monotonic."""

    interval_s: float  # between starts
    next_start: float = 0.0
    num_failures: int = 0  # in a row
    left_until: float = 0.0


class Pace:
    """When each host may be asked next, if at all. Remembers the hosts asked last, `max_hosts` of them."""

    def __init__(self, config: FetchConfig) -> None:
        self._shortest_s = 1 / config.per_host_per_second
        self._max_hosts = config.max_hosts
        self._max_failures = config.max_host_failures
        self._hosts: OrderedDict[str, _HostState] = OrderedDict()

    def _host(self, name: str) -> _HostState:
        known = self._hosts.setdefault(name, _HostState(self._shortest_s))
        self._hosts.move_to_end(name)
        if len(self._hosts) > self._max_hosts:
            self._hosts.popitem(last=False)
        return known

    def wait_s(self, name: str) -> float:
        """Seconds until the host may be asked, 0 when it may be now. Raises FetchFailed when it is left alone."""
        known = self._host(name)
        if known.left_until > time.monotonic():
            raise FetchFailed(Reason.FETCH_FAILED, "not asked: the host is left alone, since it kept failing or asked for it")
        return max(0.0, known.next_start - time.monotonic())

    def record_start(self, name: str) -> None:
        """A request to the host starts now."""
        known = self._host(name)
        known.next_start = time.monotonic() + known.interval_s

    def record_end(self, name: str, error: FetchFailed | None) -> None:
        """A request to the host came to its end. A host that asks for patience, or keeps failing, gets it."""
        known = self._host(name)
        if error is not None and error.retry_after_s:
            known.next_start = max(known.next_start, time.monotonic() + error.retry_after_s)
        failed = error is not None and (error.may_pass or error.leave_host)
        known.num_failures = known.num_failures + 1 if failed else 0
        if known.num_failures >= self._max_failures or (error is not None and error.leave_host):
            known.left_until = time.monotonic() + LEFT_S
            known.num_failures = 0

    def slow_down(self, name: str, seconds: float) -> None:
        """Leave so many seconds between requests, or what the settings say when that is more: the host's Crawl-delay."""
        known = self._host(name)
        longer = max(seconds, self._shortest_s)
        known.next_start += longer - known.interval_s
        known.interval_s = longer


class _Host:
    """The doors of one host, while anyone waits at them."""

    def __init__(self, at_once: int) -> None:
        self.places = asyncio.Semaphore(at_once)
        self.gate = asyncio.Lock()  # whoever holds it is the next to start
        self.num_users = 0


class Turn:
    """One request's turn. With `keep` set, its slot stays taken when the turn ends: the body is somewhere yet."""

    def __init__(self) -> None:
        self.keep = False


class Turns:
    """The turns of one call of the fetcher, in its event loop."""

    def __init__(self, config: FetchConfig, pace: Pace) -> None:
        self._config = config
        self._pace = pace
        self._slots = asyncio.Semaphore(config.concurrency)
        self._hosts: dict[str, _Host] = {}

    def release(self) -> None:
        """Give back the slot of a turn that was kept."""
        self._slots.release()

    @asynccontextmanager
    async def turn(self, host: str) -> AsyncIterator[Turn]:
        """A turn to ask the host once. Never taken inside another one: two that wait for each other would wait for ever.

        Raises FetchFailed when the host is left alone.
        """
        doors = self._hosts.setdefault(host, _Host(self._config.per_host_concurrency))
        doors.num_users += 1
        try:
            async with doors.places:
                async with doors.gate:
                    await self._wait(host)
                turn = Turn()
                try:
                    yield turn
                finally:
                    if not turn.keep:
                        self._slots.release()
        finally:
            doors.num_users -= 1
            if not doors.num_users:
                del self._hosts[host]

    async def _wait(self, host: str) -> None:
        """Return with a slot taken, at a moment when the host may be asked."""
        while True:
            while (seconds := self._pace.wait_s(host)) > 0:
                await asyncio.sleep(seconds)
            await self._slots.acquire()
            started = False
            try:
                if started := self._pace.wait_s(host) <= 0:  # unless it asked for patience while we waited for the slot
                    self._pace.record_start(host)
                    return
            finally:
                if not started:
                    self._slots.release()
