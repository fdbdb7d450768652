"""Fetches pictures from the web, only when a user asks for it: URLs go in, bytes or the reason why there are none come out.

    URL ─ check_url ─ robots.txt ─ turn of the host ─ resolver ─ socket ─ headers ─ body ─▶ Fetched
          (address)   (politeness) (politeness)      (address)  (address)  (http)   (http)
           ▲                                                                  │
           └──────────────────────────── redirect ────────────────────────────┘

`address` checks scheme, port, user, host and every address of each request, so redirects and robots.txt are checked too.
`politeness` holds what servers allow and how often a host may be asked. `http` makes one request with its limits on bytes, time
and decompression. `fetcher` puts them together: redirects by hand, retries with back-off, many URLs at once in an event loop with
its own thread. `store` keeps the results. The bounds hold for one Fetcher: a caller that runs several gives each its own hosts
(`share`), or divides the rates. This module holds the settings, and the result for one URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from semantica.config import config, free, require


@config
class FetchConfig:
    """How pictures are fetched from the web. Memory: at most `concurrency` bodies at once.

    Pace and patience are `free`: what the network answers decides more than they do, and a crawl that resumes may need others. What
    is taken, and by which rules, is not.
    """

    product: str = "semantica"  # our name in the User-Agent, and the one that robots.txt and X-Robots-Tag may address
    contact: str = free("")  # a URL or mail address where the owner of a server finds you; please set it
    concurrency: int = free(64)  # bodies on their way or waiting to be taken
    per_host_concurrency: int = free(2)
    per_host_per_second: float = free(2.0)  # requests started, robots.txt and redirects counted
    connect_timeout_s: float = free(10.0)
    read_timeout_s: float = free(20.0)  # without a byte
    total_timeout_s: float = free(60.0)  # of one request, from the lookup of its name to its last byte
    max_bytes: int = 25_000_000  # of a body as it is sent
    max_body_bytes: int = 25_000_000  # of a body after decompression
    max_redirects: int = 5
    max_retries: int = free(2)  # of one request, after what may pass: no connection, a timeout, 429 and 5xx
    backoff_s: float = free(1.0)  # before the first retry; doubles
    max_retry_after_s: float = free(120.0)  # a host that asks for more patience is left alone for an hour
    max_host_failures: int = free(10)  # in a row, of what may pass; then the host is left alone for an hour
    max_crawl_delay_s: float = free(30.0)  # of robots.txt's Crawl-delay, what is heeded
    respect_robots: bool = True
    respect_opt_out: bool = True  # X-Robots-Tag and the page's own robots directives: noai, noimageai, noindex, noimageindex, none
    ports: tuple[int, ...] = (80, 443)
    batch_size: int = 512  # URLs of a stored file, which a restart looks for; how far ahead of the slowest host the fetcher looks
    max_hosts: int = free(20_000)  # of which the time of the last request is remembered

    def __post_init__(self) -> None:
        word = "one word of letters, - and _"
        require(bool(re.fullmatch(r"[A-Za-z_-]{1,64}", self.product)), "product", word, self.product)
        plain = bool(re.fullmatch(r"[\x21-\x27\x2a-\x7e]{0,200}", self.contact))
        require(plain, "contact", "a URL or mail address without spaces", self.contact)
        counts = (
            "concurrency",
            "per_host_concurrency",
            "max_bytes",
            "max_body_bytes",
            "max_host_failures",
            "batch_size",
            "max_hosts",
        )
        for name in counts:
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.concurrency <= 1024, "concurrency", "at most 1024", self.concurrency)
        for name in ("per_host_per_second", "connect_timeout_s", "read_timeout_s", "total_timeout_s"):
            require(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in ("backoff_s", "max_retry_after_s", "max_crawl_delay_s"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("max_redirects", "max_retries"):
            require(0 <= getattr(self, name) <= 20, name, "in 0..20", getattr(self, name))
        require(bool(self.ports) and all(1 <= port <= 65535 for port in self.ports), "ports", "ports in 1..65535", self.ports)

    @property
    def agent(self) -> str:
        """The User-Agent header."""
        return f"{self.product} (+{self.contact})" if self.contact else self.product


@dataclass(frozen=True)
class Fetched:
    """What became of a URL. Exactly one of `data` and `problem` is set."""

    url: str  # as it was asked for
    final_url: str = ""  # after redirects; "" when the URL itself was refused
    status: int = 0  # of the last answer; 0: there was none
    data: bytes | None = None
    problem: str = ""  # a code of episodes.quarantine.Reason
    detail: str = ""


def config_per_fetcher(config: FetchConfig, num_fetchers: int) -> FetchConfig:
    """The settings of each of several fetchers at once, which may meet the same host: together they keep to the rate of one."""
    return replace(
        config,
        per_host_per_second=config.per_host_per_second / num_fetchers,
        per_host_concurrency=max(1, config.per_host_concurrency // num_fetchers),
    )
