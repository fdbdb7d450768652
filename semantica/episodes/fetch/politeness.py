"""The rules of each server by its robots.txt (RFC 9309), and the turns of requests: how many at once, and how often per host.

Rules. In: the answer to the request for a robots.txt. Out: nothing, or a FetchFailed for a URL that must not be requested. A 4xx
means that the server has no rules. When the server fails or cannot be reached, nothing else is requested from it either, and the
reason is the failure of the robots.txt request: an unreachable host does not count as one that forbids. The cache is bounded.

Turns. The fetcher limits the requests at once, in total (`slots`) and per host, and the request rate per host. A URL that waits for
its host takes no slot, so a slow host does not delay others. A host that keeps failing is not asked for an hour, so that it does
not delay its batch. The state of hosts outlives a call of the fetcher; it is a bounded table of numbers.
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

MAX_BYTES = 500 * 1024  # the least that RFC 9309 (2.5) asks to be read; the rest of a longer file is ignored
MAX_AGE_S = 24 * 3600.0  # RFC 9309, 2.4
REFUSAL_AGE_S = 3600.0  # a server that failed may work again
MAX_TOTAL = 4_000_000  # characters of all cached files; parsed, they take up to 60 times as much memory
_ENTRY = 500  # characters that each entry counts on top of its text


@dataclass(frozen=True)
class Rules:
    """The rules of one server: `robots` when it has some, `refusal` when nothing may be requested."""

    robots: Protego | None = None
    refusal: FetchFailed | None = None
    size: int = _ENTRY
    created_at: float = 0.0

    def check(self, url: yarl.URL, product: str) -> None:
        """Raise FetchFailed when a robot of this name must not request the URL."""
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
    return Rules(robots=Protego.parse(text), size=len(text) + _ENTRY, created_at=time.monotonic())


def rules_without(error: FetchFailed) -> Rules:
    """The rules when the request for robots.txt gave no body."""
    status = error.status
    if error.reason == Reason.FETCH_STATUS and 400 <= status < 500 and status != 429:
        return Rules(created_at=time.monotonic())
    if error.reason == Reason.TOO_MANY_REDIRECTS:  # RFC 9309, 2.3.1.2: as if there were no robots.txt
        return Rules(created_at=time.monotonic())
    if error.reason == Reason.FETCH_STATUS:  # the server answers, but gives no rules
        error = FetchFailed(Reason.ROBOTS, error.detail, status=status)
    return Rules(refusal=error, created_at=time.monotonic())


class RulesCache:
    """The rules of the servers asked most recently, as many as fit into MAX_TOTAL characters."""

    def __init__(self) -> None:
        self._rules: OrderedDict[str, Rules] = OrderedDict()
        self._total = 0

    def get(self, origin: str) -> Rules | None:
        """The rules of a server ("https://host:port"), None when they are unknown or too old."""
        rules = self._rules.get(origin)
        if rules is None or time.monotonic() - rules.created_at > (REFUSAL_AGE_S if rules.refusal else MAX_AGE_S):
            return None
        self._rules.move_to_end(origin)
        return rules

    def put(self, origin: str, rules: Rules) -> None:
        """Store the rules of a server, and drop the least recently used ones beyond MAX_TOTAL."""
        if old := self._rules.pop(origin, None):
            self._total -= old.size
        self._rules[origin] = rules
        self._total += rules.size
        while self._total > MAX_TOTAL and len(self._rules) > 1:
            _, oldest = self._rules.popitem(last=False)
            self._total -= oldest.size


LEFT_S = 3600.0  # how long a host that kept failing is not asked


@dataclass
class _HostState:
    """The state of a host. Times are those of time.monotonic."""

    interval_s: float  # between the starts of two requests
    next_start: float = 0.0
    num_failures: int = 0  # in a row
    left_until: float = 0.0  # the host is not asked before this time


class Pace:
    """When each host may be asked next. Remembers the `max_hosts` hosts asked most recently."""

    def __init__(self, config: FetchConfig) -> None:
        self._shortest_s = 1 / config.per_host_per_second
        self._max_hosts = config.max_hosts
        self._max_failures = config.max_host_failures
        self._hosts: OrderedDict[str, _HostState] = OrderedDict()

    def _host(self, name: str) -> _HostState:
        state = self._hosts.setdefault(name, _HostState(self._shortest_s))
        self._hosts.move_to_end(name)
        if len(self._hosts) > self._max_hosts:
            self._hosts.popitem(last=False)
        return state

    def wait_s(self, name: str) -> float:
        """Seconds until the host may be asked; 0: now. Raises FetchFailed while the host is not asked at all."""
        state = self._host(name)
        if state.left_until > time.monotonic():
            raise FetchFailed(Reason.FETCH_FAILED, "not asked: the host is left alone, since it kept failing or asked for it")
        return max(0.0, state.next_start - time.monotonic())

    def record_start(self, name: str) -> None:
        """Record that a request to the host starts now."""
        state = self._host(name)
        state.next_start = time.monotonic() + state.interval_s

    def record_end(self, name: str, error: FetchFailed | None) -> None:
        """Record that a request to the host ended. A host that asks for a pause, or keeps failing, gets a pause."""
        state = self._host(name)
        if error is not None and error.retry_after_s:
            state.next_start = max(state.next_start, time.monotonic() + error.retry_after_s)
        failed = error is not None and (error.may_pass or error.leave_host)
        state.num_failures = state.num_failures + 1 if failed else 0
        if state.num_failures >= self._max_failures or (error is not None and error.leave_host):
            state.left_until = time.monotonic() + LEFT_S
            state.num_failures = 0

    def slow_down(self, name: str, seconds: float) -> None:
        """Wait `seconds` (the host's Crawl-delay) between requests, or the interval of the settings when that is longer."""
        state = self._host(name)
        longer = max(seconds, self._shortest_s)
        state.next_start += longer - state.interval_s
        state.interval_s = longer


class _Host:
    """The semaphore and the lock of one host, which exist while a request waits for them."""

    def __init__(self, at_once: int) -> None:
        self.places = asyncio.Semaphore(at_once)
        self.gate = asyncio.Lock()  # its holder is the next to start
        self.num_users = 0


class Turn:
    """One request's turn. With `keep` set, its slot stays taken when the turn ends, since the body is still in memory."""

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
        """A turn to ask the host once. Must not be taken inside another turn: two turns could wait for each other for ever.

        Raises FetchFailed while the host is not asked at all.
        """
        state = self._hosts.setdefault(host, _Host(self._config.per_host_concurrency))
        state.num_users += 1
        try:
            async with state.places:
                async with state.gate:
                    await self._wait(host)
                turn = Turn()
                try:
                    yield turn
                finally:
                    if not turn.keep:
                        self._slots.release()
        finally:
            state.num_users -= 1
            if not state.num_users:
                del self._hosts[host]

    async def _wait(self, host: str) -> None:
        """Return with a slot taken, at a moment when the host may be asked."""
        while True:
            while (seconds := self._pace.wait_s(host)) > 0:
                await asyncio.sleep(seconds)
            await self._slots.acquire()
            started = False
            try:
                if started := self._pace.wait_s(host) <= 0:  # unless the host asked for a pause while we waited for the slot
                    self._pace.record_start(host)
                    return
            finally:
                if not started:
                    self._slots.release()
