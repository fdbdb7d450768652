"""The URLs and addresses that the fetcher may request. This module protects private networks from crawls, which strangers wrote.

A URL is checked three times for every request, also for each redirect and each robots.txt. `check_url` parses it once, with the
parser of the HTTP client, and refuses other schemes and ports, user names, odd hosts and blocked addresses. `CheckedResolver`
refuses a name when *any* of its addresses is blocked: a public picture has no private address, and DNS rebinding uses mixed
answers. `checked_socket` checks the address of the connection once more, and opens no socket for a blocked one. Only listed public
addresses are allowed, so any unforeseen form is refused.

An operator's own NAT64 prefix (RFC 6052) looks like any other address; only the two well-known prefixes are recognised here.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, TypeAlias

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from semantica.episodes.quarantine import Reason, Refused

Address: TypeAlias = IPv4Address | IPv6Address
Allowed: TypeAlias = Callable[[Address, int], bool]
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]

MAX_URL = 8192  # characters

_BLOCKED_V4 = [
    IPv4Network(net)
    for net in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by a provider's customers (CGNAT)
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, and the metadata of the clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # the relay of 6to4
        "192.168.0.0/16",
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "168.63.129.16/32",  # public by its number, but the host agent of every machine in Azure
    )
]
# Global IPv6 addresses are 2000::/3 without the networks below. IPv4-mapped (::ffff:0:0/96), IPv4-compatible, local NAT64
# (64:ff9b:1::/48), unique local, link-local, site-local and multicast addresses are outside of 2000::/3.
_GLOBAL_V6 = IPv6Network("2000::/3")
_BLOCKED_V6 = [
    IPv6Network(net)
    for net in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: carries any IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3ffe::/16",  # the 6bone, given back
        "3fff::/20",  # documentation
    )
]
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: how a network without IPv4 reaches the IPv4 address in the last 32 bits

# Names that resolve in private networks only.
_PRIVATE_NAMES = ("localhost", "localdomain", "local", "internal", "home.arpa", "in-addr.arpa", "ip6.arpa")
_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_ODD = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")


class Blocked(OSError):
    """Raised instead of opening a socket to a blocked address. An OSError, as the connector expects from a socket factory."""


def is_public(address: Address, port: int) -> bool:
    """True for a public address of the internet. The port is ignored here: `check_url` has checked it."""
    if isinstance(address, IPv4Address):
        return not any(address in net for net in _BLOCKED_V4)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF), port)
    return address.scope_id is None and address in _GLOBAL_V6 and not any(address in net for net in _BLOCKED_V6)


def check_url(url: str | yarl.URL, ports: Sequence[int], allowed: Allowed = is_public) -> yarl.URL:
    """The URL as it will be requested: host in lower-case ASCII, path quoted, no fragment. No name is looked up here.

    Raises Refused (BAD_URL or ADDRESS_BLOCKED).
    """
    text = str(url)
    if len(text) > MAX_URL:
        raise Refused(Reason.BAD_URL, f"{len(text)} characters, more than {MAX_URL}")
    if odd := _ODD.search(text):
        raise Refused(Reason.BAD_URL, f"holds the character {odd[0]!r}")
    try:
        parsed = url if isinstance(url, yarl.URL) else yarl.URL(url)
        host, port = (parsed.raw_host or "").lower(), parsed.port or 0
        has_user = parsed.user is not None or parsed.password is not None or "@" in parsed.raw_authority
    except ValueError as error:  # UnicodeError too: a host that is no IDNA
        raise Refused(Reason.BAD_URL, f"not a URL: {error}") from None
    if parsed.scheme not in ("http", "https"):
        raise Refused(Reason.BAD_URL, f"scheme {parsed.scheme!r}, expected http or https")
    if has_user:
        raise Refused(Reason.BAD_URL, "has a user name or password")
    if port not in ports:
        raise Refused(Reason.ADDRESS_BLOCKED, f"port {port}, expected one of {', '.join(map(str, ports))}")
    host = host.removesuffix(".")
    _check_host(host, port, allowed)
    return parsed.with_fragment(None).with_host(host)


def _check_host(host: str, port: int, allowed: Allowed) -> None:
    """Raise Refused unless the host is an allowed address in canonical form, or a public name."""
    try:
        address: Address | None = ip_address(host)
    except ValueError:
        address = None
    if address is not None:
        _require_allowed(address, port, allowed, host)
    # The C library reads 127.1, 0x7f.1, 2130706433 and 0177.0.0.1 as addresses: a host that ends in a number is one (WHATWG URL).
    elif _NUMBER.fullmatch(host.rpartition(".")[2]):
        raise Refused(Reason.ADDRESS_BLOCKED, f"host {host!r} is a number that is not a canonical address")
    elif host in _PRIVATE_NAMES or host.endswith(tuple(f".{name}" for name in _PRIVATE_NAMES)):
        raise Refused(Reason.ADDRESS_BLOCKED, f"host {host!r} is a name of private networks")
    elif len(host) > 253 or not _NAME.fullmatch(host):  # also a name without a dot, which only a search list completes
        raise Refused(Reason.BAD_URL, f"host {host!r} is no name of the public internet")


def _require_allowed(address: Address, port: int, allowed: Allowed, host: str) -> None:
    if not allowed(address, port):
        raise Refused(Reason.ADDRESS_BLOCKED, f"{host} is at {address}, which is not a public address")


async def system_resolve(host: str, port: int) -> list[str]:
    """The addresses of a name by the operating system's resolver. Raises OSError (socket.gaierror) when there is none."""
    # With the final dot, the machine's search list does not complete the name.
    infos = await asyncio.get_running_loop().getaddrinfo(f"{host}.", port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


class CheckedResolver(AbstractResolver):
    """The connector's resolver: all addresses of a name if each is allowed, else Refused."""

    def __init__(self, resolve: Resolve, allowed: Allowed) -> None:
        self._resolve = resolve
        self._allowed = allowed

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        """The addresses of a name, in the resolver's order. Raises Refused (ADDRESS_BLOCKED) when one of them is blocked."""
        results: list[ResolveResult] = []
        for text in await self._resolve(host, port):
            try:
                address = ip_address(text)
            except ValueError:
                raise Refused(Reason.ADDRESS_BLOCKED, f"{host} is at {text!r}, which is no address") from None
            _require_allowed(address, port, self._allowed, host)
            kind = socket.AF_INET if address.version == 4 else socket.AF_INET6
            results.append(
                ResolveResult(
                    hostname=host, host=str(address), port=port, family=kind, proto=socket.IPPROTO_TCP, flags=socket.AI_NUMERICHOST
                )
            )
        if not results:
            raise socket.gaierror(socket.EAI_NONAME, f"no address for {host}")
        return results

    async def close(self) -> None:
        """Nothing to close."""


def checked_socket(info: Any, allowed: Allowed) -> socket.socket:
    """A new TCP socket for a getaddrinfo tuple. Raises Blocked, before opening the socket, when its address is blocked."""
    family, kind, proto, _, target = info
    try:
        address: Address | None = ip_address(target[0])
    except ValueError:
        address = None
    scope = target[3] if len(target) > 3 else 0
    if address is None or scope or family not in (socket.AF_INET, socket.AF_INET6) or not allowed(address, target[1]):
        raise Blocked(f"no connection to {target[0]} port {target[1]}: not a public address")
    return socket.socket(family=family, type=kind, proto=proto)


def checked_connector(resolve: Resolve, allowed: Allowed) -> aiohttp.TCPConnector:
    """A connector that reaches allowed addresses only. Must be called inside the running event loop."""
    return aiohttp.TCPConnector(
        resolver=CheckedResolver(resolve, allowed),
        socket_factory=lambda info: checked_socket(info, allowed),
        limit=0,  # `politeness.Turns` limits the open connections
        keepalive_timeout=1.0,  # seconds; with a longer one, idle sockets of many hosts would pile up
        ttl_dns_cache=60,  # seconds; of answers that were checked
    )


def dns_threads(num: int) -> ThreadPoolExecutor:
    """Threads for the system's blocking resolver; the event loop's default pool is too small for many hosts."""
    return ThreadPoolExecutor(max_workers=num, thread_name_prefix="semantica-dns")
