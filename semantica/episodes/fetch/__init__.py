"""Fetches pictures from the web, only when a user asks for it: URLs go in, bytes or a reason for their absence come out.

    URL ─ check_url ─ robots.txt ─ turn of the host ─ resolver ─ socket ─ headers ─ body ─▶ Fetched
          (address)   (politeness) (politeness)      (address)  (address)  (http)   (http)
           ▲                                                                  │
           └──────────────────────────── redirect ────────────────────────────┘

`address` checks scheme, port, user, host and every address of each request, also of redirects and robots.txt.
`politeness` holds the rules of servers and the request rate per host. `http` makes one request, with limits on bytes, time and
decompression. `fetcher` puts these together: it follows redirects, retries with back-off, and fetches many URLs at once in an
event loop with its own thread. `store` keeps the results. The limits hold per Fetcher: a caller that runs several gives each its
own hosts (`share`), or divides the rates (`config_per_fetcher`). This module holds the settings, and the result for one URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from semantica.config import config, free, require


@config
class FetchConfig:
    """How pictures are fetched from the web. Memory: at most `concurrency` bodies at once.

    Rates, timeouts and retries are `free`: the network decides more than they do, and a resumed crawl may need other values. Fields
    that decide which pictures are fetched, and by which rules, are not free.
    """

    product: str = "semantica"  # our name in the User-Agent; robots.txt and X-Robots-Tag may address it
    contact: str = free("")  # a URL or mail address at which owners of servers can reach you; please set it
    concurrency: int = free(64)  # bodies being read, or read and not yet taken
    per_host_concurrency: int = free(2)
    per_host_per_second: float = free(2.0)  # requests started, including robots.txt and redirects
    connect_timeout_s: float = free(10.0)
    read_timeout_s: float = free(20.0)  # time without a byte
    total_timeout_s: float = free(60.0)  # of one request, from the lookup of the name to the last byte
    max_bytes: int = 25_000_000  # of a body as sent
    max_body_bytes: int = 25_000_000  # of a body after decompression
    max_redirects: int = 5
    max_retries: int = free(2)  # per request, after a temporary failure: no connection, a timeout, 429 or 5xx
    backoff_s: float = free(1.0)  # before the first retry; doubles
    max_retry_after_s: float = free(120.0)  # a host that asks for a longer pause is not asked for an hour
    max_host_failures: int = free(10)  # temporary failures in a row, after which the host is not asked for an hour
    max_crawl_delay_s: float = free(30.0)  # a longer Crawl-delay in robots.txt is cut to this
    respect_robots: bool = True
    respect_opt_out: bool = True  # X-Robots-Tag and the page's own robots directives: noai, noimageai, noindex, noimageindex, none
    ports: tuple[int, ...] = (80, 443)
    batch_size: int = 512  # URLs per stored file, the unit of a restart; also the number of URLs the fetcher takes on at once
    max_hosts: int = free(20_000)  # the number of hosts whose last request is remembered

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
    """The result for one URL. Exactly one of `data` and `problem` is set."""

    url: str  # as requested
    final_url: str = ""  # after redirects; "" when the URL itself was refused
    status: int = 0  # of the last answer; 0: no answer
    data: bytes | None = None
    problem: str = ""  # a code of episodes.quarantine.Reason
    detail: str = ""


def config_per_fetcher(config: FetchConfig, num_fetchers: int) -> FetchConfig:
    """The settings of each of `num_fetchers` fetchers that may meet the same host: together they keep to the rate of one."""
    return replace(
        config,
        per_host_per_second=config.per_host_per_second / num_fetchers,
        per_host_concurrency=max(1, config.per_host_concurrency // num_fetchers),
    )
