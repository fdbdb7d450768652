"""How a figure was made: what stands beside every number of the report, so that no two are compared that cannot be.

In come the settings of one measurement; out comes one sentence for people. A field that is None or empty was not stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semantica.report.written import number

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
