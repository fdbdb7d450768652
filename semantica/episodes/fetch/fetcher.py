"""The fetcher: follows redirects itself, retries with back-off, and fetches many URLs at once in an event loop in a thread."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import queue
import random
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import tenacity
import yarl

from semantica.episodes.fetch import FetchConfig, Fetched, politeness
from semantica.episodes.fetch.address import Allowed, Resolve, check_url, dns_threads, is_public, system_resolve
from semantica.episodes.fetch.http import Answer, Client, FetchFailed
from semantica.episodes.fetch.politeness import Pace, Turns
from semantica.episodes.quarantine import Reason, Refused, short_text

__all__ = ["FetchConfig", "Fetched", "Fetcher", "share"]

log = logging.getLogger(__name__)


class Fetcher:
    """Fetches many URLs at once, within the limits of `politeness`. One call of `fetch_all` at a time. Between calls it holds no
    thread and no socket, only the state of hosts.

    `resolve` and `allowed` are for tests, which have no public address; no setting changes them.
    """

    def __init__(self, config: FetchConfig, *, resolve: Resolve = system_resolve, allowed: Allowed = is_public) -> None:
        self.config = config
        self._resolve = resolve
        self._allowed = allowed
        self._pace = Pace(config)
        self._robots = politeness.RulesCache()
        if not config.contact:
            log.warning("fetch: contact is empty; set a URL or mail address where the owners of servers find you")

    def fetch_all(self, urls: Iterable[str]) -> Iterator[Fetched]:
        """One Fetched per URL, in the order in which they finish. `urls` is read lazily, in the caller's thread.

        At most `concurrency` bodies are in memory (being read, or not yet taken), and at most `batch_size` URLs wait. When the
        caller leaves the iteration early, the running requests are cancelled.
        """
        loop = asyncio.new_event_loop()
        loop.set_default_executor(dns_threads(min(32, self.config.concurrency)))
        thread = threading.Thread(target=loop.run_forever, name="semantica-fetch", daemon=True)
        thread.start()
        done: queue.SimpleQueue[Future[Fetched]] = queue.SimpleQueue()
        run = _Run(self.config, self._resolve, self._allowed, self._pace, self._robots, loop)
        try:
            asyncio.run_coroutine_threadsafe(run.start(), loop).result()
            num_waiting = 0
            ahead = max(self.config.batch_size, self.config.concurrency)
            for url in urls:
                asyncio.run_coroutine_threadsafe(run.fetch(url), loop).add_done_callback(done.put)
                num_waiting += 1
                while num_waiting >= ahead or not done.empty():
                    num_waiting -= 1
                    yield run.take(done.get())
            for _ in range(num_waiting):
                yield run.take(done.get())
        finally:
            asyncio.run_coroutine_threadsafe(run.stop(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()  # also releases the threads of the resolver, without waiting for them


class _Run:
    """One call of `fetch_all`, inside its event loop."""

    def __init__(
        self,
        config: FetchConfig,
        resolve: Resolve,
        allowed: Allowed,
        pace: Pace,
        robots: politeness.RulesCache,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._config = config
        self._resolve = resolve
        self._allowed = allowed
        self._pace = pace
        self._robots = robots
        self._loop = loop
        self._turns = Turns(config, pace)
        self._asking: dict[str, asyncio.Task[politeness.Rules]] = {}  # servers whose robots.txt is on its way
        self._client: Client | None = None

    async def start(self) -> None:
        """Open the session, which belongs to the running loop."""
        self._client = Client(self._config, self._resolve, self._allowed)

    def take(self, future: Future[Fetched]) -> Fetched:
        """The result of a finished `fetch`, whose slot becomes free. Called from the caller's thread."""
        fetched = future.result()
        if fetched.data is not None:
            self._loop.call_soon_threadsafe(self._turns.release)
        return fetched

    async def stop(self) -> None:
        """Cancel the running requests and close every socket."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    async def fetch(self, url: str) -> Fetched:
        """The result for the URL. When there is a body, its slot stays taken until `take`."""
        route = _Route()
        try:
            answer = await self._follow(url, route, for_robots=False)
        except Refused as error:
            status = error.status if isinstance(error, FetchFailed) else 0
            return Fetched(url, route.last, status, problem=error.reason, detail=short_text(error.detail))
        return Fetched(url, route.last, answer.status, data=answer.body)

    async def _follow(self, url: str | yarl.URL, route: _Route, *, for_robots: bool) -> Answer:
        """The final answer after all redirects. Every check is repeated for each hop. Raises Refused."""
        hop = check_url(url, self._config.ports, self._allowed)
        for _ in range(self._config.max_redirects + 1):
            route.last = str(hop)
            if self._config.respect_robots and not for_robots:
                await self._check_robots(hop)
            answer = await self._ask_patiently(hop, for_robots)
            if not answer.location:
                return answer
            try:
                target = hop.join(yarl.URL(answer.location))
            except ValueError as error:
                raise FetchFailed(Reason.BAD_URL, f"redirect to no URL: {error}", status=answer.status) from None
            hop = check_url(target, self._config.ports, self._allowed)
        raise FetchFailed(Reason.TOO_MANY_REDIRECTS, f"more than {self._config.max_redirects}", status=answer.status)

    async def _check_robots(self, url: yarl.URL) -> None:
        """Raise FetchFailed when the server's robots.txt disallows the URL. The first URL of a server requests its robots.txt."""
        origin = str(url.origin())
        rules = self._robots.get(origin)
        if rules is None:
            if origin not in self._asking:
                self._asking[origin] = asyncio.create_task(self._ask_robots(url, origin))
            rules = await self._asking[origin]
        rules.check(url, self._config.product)

    async def _ask_robots(self, url: yarl.URL, origin: str) -> politeness.Rules:
        try:
            answer = await self._follow(url.origin().with_path("/robots.txt"), _Route(), for_robots=True)
            rules = politeness.rules_of(answer.body or b"")
        except FetchFailed as error:
            rules = politeness.rules_without(error)
        except Refused as error:
            rules = politeness.rules_without(FetchFailed(error.reason, error.detail))
        self._robots.put(origin, rules)
        if (delay_s := rules.crawl_delay_s(self._config.product)) > 0:
            self._pace.slow_down(str(url.host), min(delay_s, self._config.max_crawl_delay_s))
        del self._asking[origin]
        return rules

    async def _ask_patiently(self, url: yarl.URL, for_robots: bool) -> Answer:
        """The answer to one request, which is retried with back-off after temporary failures. Raises Refused."""
        dice = random.Random(str(url))

        def pause_s(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked_s = error.retry_after_s if isinstance(error, FetchFailed) else 0.0
            return max(asked_s, self._config.backoff_s * float(2 ** (state.attempt_number - 1)) * dice.uniform(1, 1.5))

        attempts = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self._config.max_retries + 1),
            wait=pause_s,
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, FetchFailed) and error.may_pass),
            reraise=True,
        )
        answer: Answer = await attempts(self._ask, url, for_robots)
        return answer

    async def _ask(self, url: yarl.URL, for_robots: bool) -> Answer:
        """The answer to one request, sent when the host's turn comes. The body of a picture keeps its slot."""
        assert self._client is not None
        host = str(url.host)
        async with self._turns.turn(host) as turn:
            try:
                if for_robots:
                    answer = await self._client.robots(url, politeness.MAX_BYTES)
                else:
                    answer = await self._client.picture(url)
            except FetchFailed as error:
                self._pace.record_end(host, error)
                raise
            self._pace.record_end(host, None)
            turn.keep = answer.body is not None and not for_robots
            return answer


@dataclass
class _Route:
    """The last hop of a URL that passed the checks; "" when none did."""

    last: str = ""


def share(url: str, num_shares: int) -> int:
    """Which of `num_shares` fetchers gets the URL. All URLs of a host go to the same fetcher, so that rates per host hold."""
    try:
        host = (yarl.URL(url).raw_host or "").lower().removesuffix(".")
    except ValueError:
        host = ""
    return int.from_bytes(hashlib.sha256(host.encode()).digest()[:8]) % num_shares
