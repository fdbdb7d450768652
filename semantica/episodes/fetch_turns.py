"""Whose turn it is: the bounds of the fetcher on requests at once, in all and of one host, and on how often a host is asked.

A URL waits for its host here without taking one of the places in all (`slots`), so a slow host holds nobody else up. Times of last
requests outlive a call of the fetcher; they are plain numbers in a bounded table.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from semantica.episodes.fetch_config import FetchConfig


class Pace:
    """When each host may be asked next. Remembers the hosts asked last, `max_hosts` of them."""

    def __init__(self, config: FetchConfig) -> None:
        self._shortest_s = 1 / config.per_host_per_second
        self._max_hosts = config.max_hosts
        self._hosts: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (next start, seconds between starts)

    def wait_s(self, host: str) -> float:
        """Seconds until the host may be asked, 0 when it may be now."""
        return max(0.0, self._hosts.get(host, (0.0, 0.0))[0] - time.monotonic())

    def started(self, host: str) -> None:
        """A request to the host starts now."""
        _, interval = self._hosts.get(host, (0.0, self._shortest_s))
        self._set(host, time.monotonic() + interval, interval)

    def hold(self, host: str, seconds: float) -> None:
        """Leave the host alone for some seconds: it said Retry-After."""
        then, interval = self._hosts.get(host, (0.0, self._shortest_s))
        self._set(host, max(then, time.monotonic() + seconds), interval)

    def slow_down(self, host: str, seconds: float) -> None:
        """Leave so many seconds, or what the settings say when that is more, between requests: its Crawl-delay."""
        then, interval = self._hosts.get(host, (0.0, self._shortest_s))
        longer = max(seconds, self._shortest_s)
        self._set(host, then - interval + longer if then else 0.0, longer)

    def _set(self, host: str, then: float, interval: float) -> None:
        self._hosts[host] = (then, interval)
        self._hosts.move_to_end(host)
        while len(self._hosts) > self._max_hosts:
            self._hosts.popitem(last=False)


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
        """A turn to ask the host once. Never taken inside another one: two that wait for each other would wait for ever."""
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
            if self._pace.wait_s(host) <= 0:
                self._pace.started(host)
                return
            self._slots.release()  # the host asked for patience while we waited for the slot
