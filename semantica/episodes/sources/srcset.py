"""The candidates of a `srcset` attribute, parsed as browsers do (HTML Standard, 4.8.4.3.10), the largest first.

Comes in from `html`: the text of one attribute. Goes out: URLs with the size each claims. A URL may hold commas (`data:`, image
services), so the text cannot be split at them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_SPACE = " \t\n\f\r"
_WIDTH = re.compile(r"([0-9]+)w\Z")
_DENSITY = re.compile(r"(-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)x\Z")
_HEIGHT = re.compile(r"[0-9]+h\Z")


@dataclass(frozen=True)
class Candidate:
    """One URL for a picture, with the width it claims (0: none) or its pixel density (1 unless told)."""

    url: str
    width_px: int = 0
    density: float = 1.0

    @property
    def size(self) -> tuple[int, float]:
        """What candidates are ordered by: a claimed width says more than a density, which says more than nothing."""
        return self.width_px, self.density


def parse_srcset(text: str) -> list[Candidate]:
    """The candidates in the order of the text; those with descriptors that make no sense are left out, as in browsers."""
    candidates: list[Candidate] = []
    at = 0
    while True:
        while at < len(text) and text[at] in _SPACE + ",":
            at += 1
        if at == len(text):
            return candidates
        start = at
        while at < len(text) and text[at] not in _SPACE:
            at += 1
        url, descriptors = text[start:at], ""
        if url.endswith(","):
            url = url.rstrip(",")
        else:
            start = at
            at = _end_of_descriptors(text, at)
            descriptors = text[start:at]
        candidate = _candidate(url, descriptors.split())
        if candidate:
            candidates.append(candidate)


def _end_of_descriptors(text: str, at: int) -> int:
    """The index of the comma that ends the descriptors (one inside parentheses does not), or of the end."""
    inside = False
    while at < len(text) and (inside or text[at] != ","):
        inside = text[at] == "(" or (inside and text[at] != ")")
        at += 1
    return at


def _candidate(url: str, descriptors: list[str]) -> Candidate | None:
    width: int | None = None
    density: float | None = None
    for word in descriptors:
        if (match := _WIDTH.match(word)) and width is None and density is None:
            width = int(match[1][:9])  # nine digits are enough to win
            if not width:
                return None
        elif (match := _DENSITY.match(word)) and width is None and density is None:
            density = float(match[1])
            if density < 0 or not math.isfinite(density):
                return None
        elif not _HEIGHT.match(word):
            return None
    return Candidate(url, width or 0, 1.0 if density is None else density)
