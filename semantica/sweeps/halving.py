"""Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): all trials to a point, the best of them to the next, and so on.

In: what is on the disk of every trial. Out: who goes on, to which point, and who is stopped. ASHA decides about a trial when it
comes to a point, by those that were there before it; here a point is decided when all have come to it, so that no trial goes on
because it was early, and the order of the trials does not matter. Trials pause at a point: they are saved there and end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from semantica.sweeps.ranking import milestones
from semantica.sweeps.results import Figure, Result


@dataclass(frozen=True)
class Loser:
    """A trial that is stopped at a point, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Round:
    """The trials that go on, to which point (None: to their end), and all that have been stopped by now."""

    names: tuple[str, ...]
    until: int | None
    losers: tuple[Loser, ...]


def next_round(results: Sequence[Result], *, num_points: int, grace_points: int, reduction_factor: float) -> Round:
    """What is to be done now, a pure function of what was measured; no names: nothing.

    At each of ASHA's points the best 1 / reduction_factor of those that came there go on, at least one. A trial that diverged, or
    could not be trained, does not count at the points that it did not come to.
    """
    alive, losers = list(results), list[Loser]()
    for rung in (math.ceil(m) for m in milestones(num_points, grace_points, reduction_factor)):
        there = {result.name: figure for result in alive if (figure := _at(result, rung)) is not None}
        behind = [r for r in alive if r.name not in there and r.status not in ("diverged", "failed")]
        if behind:
            return Round(tuple(r.name for r in behind), rung, tuple(losers))
        ranked = sorted((r for r in alive if r.name in there), key=lambda r: (there[r.name].frechet, r.index))
        num_kept = max(1, math.floor(len(ranked) / reduction_factor))
        alive = ranked[:num_kept]
        losers += [
            Loser(r.name, f"FD {there[r.name].frechet:.4g} at point {rung} is not among the best {num_kept} of {len(ranked)}")
            for r in ranked[num_kept:]
        ]
    return Round(tuple(r.name for r in alive if r.status == "unfinished"), None, tuple(losers))


def _at(result: Result, point: int) -> Figure | None:
    return next((figure for figure in result.figures if figure.point == point), None)
