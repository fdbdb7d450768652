"""The word of every check: a finding, the guard that turns whatever a check raises or hangs on into one, and how a list is shown.

A check is a function without arguments that returns findings. It neither raises (the guard sees to it) nor leaves anything behind.
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
    """name: what was looked at, "storage.rename" say. found: what is there. remedy: what to do, "" when nothing."""

    name: str
    status: Status
    found: str
    remedy: str = ""


Check: TypeAlias = Callable[[], Iterable[Finding]]


def ok(name: str, found: str) -> Finding:
    """A finding that asks for nothing."""
    return Finding(name, "OK", found)


def warn(name: str, found: str, remedy: str) -> Finding:
    """A finding that a stage may survive."""
    return Finding(name, "WARN", found, remedy)


def fail(name: str, found: str, remedy: str) -> Finding:
    """A finding that some stage will not survive."""
    return Finding(name, "FAIL", found, remedy)


def run_check(name: str, check: Check, *, seconds: float = 30.0) -> list[Finding]:
    """What the check finds; FAIL with its sentence when it raises, or when it has no answer after so many seconds.

    The check runs in a thread of its own that is left behind if it hangs: a process that ends does not wait for it.
    """
    findings: list[Finding] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            findings.extend(check())
        except BaseException as error:  # noqa: BLE001 - a doctor reports whatever it meets, also what libraries raise as SystemExit
            raised.append(error)

    thread = threading.Thread(target=work, name=f"doctor {name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return [*findings, fail(name, f"no answer within {seconds:g} s", "see whether the address is right and nothing blocks it")]
    if raised:
        return [*findings, fail(name, sentence(raised[0]), "the check itself did not get through: the sentence says why")]
    return findings


def sentence(error: BaseException) -> str:
    """An exception as one line: its kind and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def worst(findings: Iterable[Finding]) -> Status:
    """The gravest status; OK for none."""
    return max((finding.status for finding in findings), key=ORDER.index, default="OK")


def exit_code(findings: Iterable[Finding]) -> int:
    """1 when something fails, else 0."""
    return int(worst(findings) == "FAIL")


def as_text(findings: Sequence[Finding]) -> str:
    """A line a finding, and one that counts them."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = [f"{f.status:<4}  {f.name:<{width}}  {f.found}{f'; {f.remedy}' if f.remedy else ''}" for f in findings]
    counts = ", ".join(f"{sum(f.status == status for f in findings)} {status}" for status in ORDER)
    return "\n".join([*lines, counts])


def as_json(findings: Sequence[Finding]) -> str:
    """The same for a program: {"worst": ..., "findings": [{"name", "status", "found", "remedy"}, ...]}."""
    return json.dumps({"worst": worst(findings), "findings": [asdict(finding) for finding in findings]}, indent=1)
