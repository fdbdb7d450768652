"""Numbers for a person: bytes, FLOPs, hours, counts and money."""

from __future__ import annotations


def size(num_bytes: float | int) -> str:
    """Bytes in powers of 1000."""
    return _with_unit(num_bytes, ("B", "KB", "MB", "GB", "TB", "PB"))


def count(number: float | int) -> str:
    """A number of parameters, FLOPs or pictures, in powers of 1000."""
    return _with_unit(number, ("", "K", "M", "G", "T", "P", "E", "Z", "Y")).rstrip()


def _with_unit(number: float | int, units: tuple[str, ...]) -> str:
    index = 0
    while number >= 999.5 and index < len(units) - 1:
        number, index = number / 1000, index + 1
    return f"{number:.3g} {units[index]}"


def hours(number: float | int) -> str:
    """A time given in hours, shown in seconds, minutes, hours or days by its length."""
    if number * 3600 < 90:
        return f"{number * 3600:.3g} s"
    if number < 1.5:
        return f"{number * 60:.3g} min"
    return f"{number:,.1f} h" if number < 72 else f"{number / 24:,.1f} days"
