"""Selection -> which pair stands in slot s of the batch of step k: a pure function of (selection, seed, k, s).

Row groups are dealt to a fixed number of *lanes*, a multiple of every world size allowed. Each lane is its own endless shuffled
stream of draws: epoch by epoch a permutation of its row groups, cut into windows, the draws of a window permuted. Slot s reads lane
s mod lanes, so a worker that reads lanes rank, rank + world, ... draws what every other number of workers would draw, and the
whole resume state is k.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from semantica.errors import ConfigError
from semantica.pairs.selection import RowGroup


class KeyedGenerator:
    """`keyed(*key)`: one generator, set to the start of the stream of a key. A call ends the stream of the call before.

    Eight times as fast as a new generator, which asks the operating system for entropy that it does not use. Not thread-safe.
    """

    def __init__(self) -> None:
        self._philox = np.random.Philox(key=0)
        self._start = self._philox.state
        self._generator = np.random.Generator(self._philox)

    def __call__(self, *key: object) -> np.random.Generator:
        digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
        self._start["state"]["key"] = np.frombuffer(digest[:16], "<u8")
        self._philox.state = self._start
        return self._generator


def generator(*key: object) -> np.random.Generator:
    """A generator that depends on the key alone: counter-based (Philox), keyed by SHA-256 of the key's text."""
    return KeyedGenerator()(*key)


def deal_lanes(groups: Sequence[RowGroup], num_lanes: int) -> tuple[tuple[RowGroup, ...], ...]:
    """`num_lanes` lanes with about equal numbers of draws: groups in order of size, each to the lane with the fewest draws."""
    lanes: list[list[RowGroup]] = [[] for _ in range(num_lanes)]
    load = [0] * num_lanes
    for group in sorted((g for g in groups if g.num_draws), key=lambda g: (-g.num_draws, g.file, g.group)):
        emptiest = min(range(num_lanes), key=lambda lane: (load[lane], lane))
        lanes[emptiest].append(group)
        load[emptiest] += group.num_draws
    if not all(lanes):
        filled = sum(1 for g in groups if g.num_draws)
        raise ConfigError(
            f"train.num_lanes is {num_lanes}, but only {filled} row groups of the encodings offer pairs; "
            "use fewer lanes, or encode with a smaller rows_per_group"
        )
    return tuple(tuple(sorted(lane, key=lambda g: (g.file, g.group))) for lane in lanes)


@dataclass(frozen=True)
class Draw:
    """One draw: the row group, and which of its targets (0 <= index < group.num_draws), in the epoch that keys its partner."""

    group: RowGroup
    index: int
    epoch: int


class LaneStream:
    """One lane's endless stream; `draw(p)` is its p-th draw, found from counts alone, without reading data."""

    def __init__(self, groups: Sequence[RowGroup], key: tuple[object, ...], window_groups: int) -> None:
        self.groups, self.key, self.window_groups = tuple(groups), key, window_groups
        self.num_draws = sum(g.num_draws for g in groups)
        # Two windows, since a batch may straddle two. The caches belong to the stream and are freed with it.
        self._window = lru_cache(maxsize=2)(self._permuted_window)
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def draw(self, position: int) -> Draw:
        """The draw at `position` >= 0."""
        epoch, offset = divmod(position, self.num_draws)
        order, starts = self._order(epoch)
        window = int(np.searchsorted(starts, offset, side="right")) - 1
        group, index = self._window(epoch, window)[offset - int(starts[window])]
        return Draw(self.groups[order[group]], int(index), epoch)

    def _epoch_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = generator(*self.key, "order", epoch).permutation(len(self.groups))
        sizes = np.array([self.groups[g].num_draws for g in order])
        starts = np.concatenate([[0], np.cumsum(sizes)])[:-1][:: self.window_groups]
        return order, starts

    def _permuted_window(self, epoch: int, window: int) -> np.ndarray:
        order, _ = self._order(epoch)
        members = range(window * self.window_groups, min((window + 1) * self.window_groups, len(order)))
        draws = np.concatenate(
            [np.stack([np.full(n, m, np.int64), np.arange(n)], axis=1) for m in members for n in [self.groups[order[m]].num_draws]]
        )
        permuted: np.ndarray = generator(*self.key, "window", epoch, window).permutation(draws)
        return permuted


class PairStream:
    """The endless stream of batches of pairs: `draw(step, slot)` for any step and slot, in any order, on any worker."""

    def __init__(
        self, groups: Sequence[RowGroup], selection_hash: str, *, seed: int, batch_size: int, num_lanes: int, window_groups: int
    ) -> None:
        if batch_size % num_lanes:
            raise ConfigError(f"train.batch_size must be a multiple of num_lanes = {num_lanes}, got {batch_size}")
        self.batch_size, self.num_lanes = batch_size, num_lanes
        lanes = deal_lanes(groups, num_lanes)
        self._lanes = [LaneStream(lane, (selection_hash, seed, "lane", i), window_groups) for i, lane in enumerate(lanes)]
        self._key = (selection_hash, seed, "partner")
        self._chance = KeyedGenerator()

    @property
    def num_draws(self) -> int:
        """Draws of one epoch, all lanes together."""
        return self.num_draws_of(range(self.num_lanes))

    def num_draws_of(self, lanes: Iterable[int]) -> int:
        """Draws of one epoch of these lanes."""
        return sum(self._lanes[lane].num_draws for lane in lanes)

    def slots(self, rank: int, world: int) -> range:
        """The slots that worker `rank` of `world` fills."""
        if self.num_lanes % world:
            raise ConfigError(f"the number of workers must divide num_lanes = {self.num_lanes}, got {world}")
        return range(rank, self.batch_size, world)

    def draw(self, step: int, slot: int) -> Draw:
        """The draw in `slot` of the batch of `step`."""
        lane = slot % self.num_lanes
        return self._lanes[lane].draw(step * (self.batch_size // self.num_lanes) + slot // self.num_lanes)

    def partners(self, draw: Draw, candidates: np.ndarray, max_images: int = 1) -> list[int]:
        """The conditioning images (indices) of this draw's target: 1 to max_images of the candidates, keyed by the draw alone.

        How many is uniform, and at most all candidates. The first one is the same for every max_images.
        """
        chance = self._chance(*self._key, draw.epoch, draw.group.file, draw.group.group, draw.index)
        first = int(chance.integers(len(candidates)))
        if max_images == 1:
            return [int(candidates[first])]
        others = chance.permutation(np.delete(candidates, first))[: int(chance.integers(max_images))]
        return [int(candidates[first]), *map(int, others)]
