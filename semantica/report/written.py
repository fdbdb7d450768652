"""How numbers are written on the report, so that a figure looks the same wherever it stands, and what report.json makes of them.

In come numbers as they were computed; out come short texts for people, with an uncertainty to the digits that it leaves, and plain
JSON values for programs, which keep every digit.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any, TypeGuard

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
