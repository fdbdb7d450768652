"""The result type of all checks, the guard that turns an exception or a hang into a finding, and the printing of findings.

A check is a function without arguments that returns findings. It leaves nothing behind. `run_check` is the guard.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["OK", "WARN", "FAIL"]
ORDER: tuple[Status, ...] = ("OK", "WARN", "FAIL")


@dataclass(frozen=True)
class Finding:
    """name: what was checked, for example "storage.rename". found: what is there. remedy: what to do; "" for nothing."""

    name: str
    status: Status
    found: str
    remedy: str = ""


Check: TypeAlias = Callable[[], Iterable[Finding]]


def ok(name: str, found: str) -> Finding:
    """A finding without a fault."""
    return Finding(name, "OK", found)


def warn(name: str, found: str, remedy: str) -> Finding:
    """A fault with which a stage may still work."""
    return Finding(name, "WARN", found, remedy)


def fail(name: str, found: str, remedy: str) -> Finding:
    """A fault with which some stage will not work."""
    return Finding(name, "FAIL", found, remedy)


def run_check(name: str, check: Check, *, seconds: float = 30.0) -> list[Finding]:
    """The findings of a check, and a FAIL when it raises or has not returned after `seconds`.

    The check runs in a daemon thread. A check that hangs is abandoned there, and the end of the process does not wait for it.
    """
    findings: list[Finding] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            findings.extend(check())
        except BaseException as error:  # noqa: BLE001 - every exception becomes a finding, also a library's SystemExit
            raised.append(error)

    thread = threading.Thread(target=work, name=f"doctor {name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return [*findings, fail(name, f"no answer within {seconds:g} s", "check that the address is right and nothing blocks it")]
    if raised:
        return [*findings, fail(name, sentence(raised[0]), "the check itself failed, with this error")]
    return findings


def sentence(error: BaseException) -> str:
    """An exception as one line: its kind and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def worst(findings: Iterable[Finding]) -> Status:
    """The worst status; OK without findings."""
    return max((finding.status for finding in findings), key=ORDER.index, default="OK")


def exit_code(findings: Iterable[Finding]) -> int:
    """1 when a finding is FAIL, else 0."""
    return int(worst(findings) == "FAIL")


def as_text(findings: Sequence[Finding]) -> str:
    """One line per finding, and a last line that counts them."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = [f"{f.status:<4}  {f.name:<{width}}  {f.found}{f'; {f.remedy}' if f.remedy else ''}" for f in findings]
    counts = ", ".join(f"{sum(f.status == status for f in findings)} {status}" for status in ORDER)
    return "\n".join([*lines, counts])


def as_json(findings: Sequence[Finding]) -> str:
    """The findings for a program: {"worst": ..., "findings": [{"name", "status", "found", "remedy"}, ...]}."""
    return json.dumps({"worst": worst(findings), "findings": [asdict(finding) for finding in findings]}, indent=1)
