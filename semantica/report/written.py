"""How numbers, and the settings behind a figure, are written on the report, so that they look the same wherever they stand.

In come numbers as they were computed and the settings of one measurement; out come short texts for people, an uncertainty with the
digits that it leaves, one sentence of settings beside every figure, and plain JSON values for programs, which keep every digit.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

SMALL_N = 2048  # the Inception features' dimension: with fewer pictures a covariance is singular and the bias of FID dominates


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The settings that a figure depends on. `extractor` is a name of the registry; `error_of` says what ± was taken over."""

    data: str = ""
    resolution_px: int | None = None
    num_samples: int | None = None
    num_reference: int | None = None
    extractor: str = ""
    resize: str = ""
    num_steps: int | None = None
    guidance: float | int | None = None
    ema: bool | None = None
    seeds: Sequence[int] = ()
    error_of: str = ""
    more: str = ""

    @property
    def is_small(self) -> bool:
        """Whether n is so small that a Fréchet distance says little outside its own table."""
        return self.num_samples is not None and self.num_samples < SMALL_N

    @property
    def sentence(self) -> str:
        """Every setting that was stated, in the same order everywhere: n, extractor, resize, steps, w, EMA, seeds."""
        against = "" if self.num_reference is None else f" against {number(self.num_reference)}"
        parts = [
            self.data,
            "" if self.resolution_px is None else f"{self.resolution_px} px",
            "" if self.num_samples is None else f"n = {number(self.num_samples)}{against}",
            self.extractor,
            f"resize {self.resize}" if self.resize else "",
            "" if self.num_steps is None else f"{number(self.num_steps)} steps",
            "" if self.guidance is None else f"w = {self.guidance:g}",
            "" if self.ema is None else ("EMA weights" if self.ema else "raw weights"),
            _seeds(self.seeds),
            f"± over {self.error_of}" if self.error_of else "",
            self.more,
        ]
        return "; ".join(part for part in parts if part)


def protocol_sentence(protocol: str | Protocol) -> str:
    """The sentence of a protocol, or the words that were given for it."""
    return protocol.sentence if isinstance(protocol, Protocol) else protocol


def _seeds(seeds: Sequence[int]) -> str:
    ordered = sorted(seeds)
    if not ordered:
        return ""
    if len(ordered) == 1:
        return f"seed {ordered[0]}"
    if ordered == list(range(ordered[0], ordered[0] + len(ordered))):
        return f"seeds {ordered[0]} to {ordered[-1]}"
    return f"seeds {', '.join(map(str, ordered))}" if len(ordered) <= 8 else f"{len(ordered)} seeds, {ordered[0]} to {ordered[-1]}"


Number = float | int
Value = float | int | str | None

NONE = "–"
_NARROW = "\u202f"  # narrow, and no line ends there


def number(value: Any) -> str:
    """The value as read by people: four digits that count, narrow spaces between thousands from 10 000 on, a dash for none."""
    if value is None:
        return NONE
    if not is_number(value):
        return str(value)
    if not math.isfinite(value) or (abs(value) < 1000 and value != int(value)) or abs(value) >= 1e15:
        return f"{value:.4g}"
    return _grouped(f"{round(value)}")


def uncertain(value: Any, error: Any) -> str:
    """Value ± standard error, both to the second digit of the error; the value alone when there is no error."""
    if error is None or not is_number(value) or not (math.isfinite(error) and math.isfinite(value)):
        return number(value)
    if error == 0:
        return f"{number(value)} ± 0"
    exponent = int(f"{error:.1e}".partition("e")[2])
    if not -7 < exponent < 15:
        return f"{value:.4g} ± {error:.2g}"
    digits = max(0, 1 - exponent)
    return f"{_grouped(f'{value:.{digits}f}')} ± {_grouped(f'{error:.{digits}f}')}"


def megabytes(num_bytes: int) -> str:
    """The size in kB below one megabyte, else in MB."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.0f} kB"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a real number, NumPy's too, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """The value as strict JSON holds it: lists, dicts and Python numbers; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if hasattr(value, "tolist"):  # a NumPy scalar or array
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _grouped(digits: str) -> str:
    whole, point, fraction = digits.partition(".")
    return (f"{int(whole):,}".replace(",", _NARROW) if len(whole.lstrip("-")) > 4 else whole) + point + fraction
