"""Authentication: whether Ray's tokens are on when others could reach the cluster, and whether there is a token to send.

Ray 2.60 reads RAY_AUTH_MODE (token or disabled), and the token from RAY_AUTH_TOKEN, from the file RAY_AUTH_TOKEN_PATH, or from
~/.ray/auth_token, in that order. The token itself is never shown.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from semantica.doctor.finding import Finding, fail, ok, warn

_GENERATE = "ray get-auth-token --generate (or copy the cluster's token into ~/.ray/auth_token), then export RAY_AUTH_MODE=token"


def check_authentication(address: str | None, environment: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """One finding for the mode, and one for the token if there is one. address: of the cluster; None for a local Ray."""
    variables = os.environ if environment is None else environment
    mode = variables.get("RAY_AUTH_MODE", "").lower()
    token, source = find_token(variables)
    yield _mode(address, mode, token is not None)
    if token is not None:
        yield _token_file(source)


def _mode(address: str | None, mode: str, has_token: bool) -> Finding:
    name = "authentication.mode"
    if mode not in ("", "token", "disabled"):
        return fail(name, f"RAY_AUTH_MODE={mode}", "Ray knows token and disabled")
    if mode == "token" and not has_token and address is not None:
        return fail(name, "RAY_AUTH_MODE=token, but no token", _GENERATE)
    if address is None:
        return ok(name, "no cluster is named; a local Ray creates its own token" if mode != "disabled" else "disabled; local only")
    if not is_loopback(address):
        if mode != "token":
            return fail(name, f"{address} is on a network and RAY_AUTH_MODE is {mode or 'not set'}", _GENERATE)
        if address.startswith("http://"):
            return warn(
                name, f"token, for {address}", "it travels unencrypted: on a network that is not yours use a tunnel or https"
            )
        return ok(name, f"token, for {address}")
    if mode == "" and has_token:
        found = "RAY_AUTH_MODE is not set, but this machine has a token, and its Ray was started with it"
        return warn(name, found, "export RAY_AUTH_MODE=token, else submitting a job is refused (401)")
    return ok(name, f"{mode or 'not set'}, for {address}; not checked: whether other machines reach its head")


def _token_file(source: str) -> Finding:
    name = "authentication.token"
    path = Path(source)
    if path.is_file() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return warn(name, f"{path} can be read by other users of this machine", f"chmod 600 {path}")
    return ok(name, f"from {source}")


def find_token(variables: Mapping[str, str]) -> tuple[str | None, str]:
    """(the token or None, its source), searched in Ray's own order."""
    if token := variables.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    given = variables.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path(variables.get("HOME") or Path.home()) / ".ray" / "auth_token"
    try:
        return path.read_text().strip() or None, str(path)
    except OSError:
        return None, str(path)


def host_of(address: str) -> str:
    """The host of HOST:PORT, http://HOST:PORT or ray://HOST:PORT; "auto" and "local" are this machine."""
    if address in ("auto", "local"):
        return "127.0.0.1"
    return urlsplit(address if "://" in address else f"//{address}").hostname or ""


def is_loopback(address: str) -> bool:
    """True when only this machine reaches the address."""
    host = host_of(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
