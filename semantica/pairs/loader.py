"""Encodings + selection -> training batches: target pictures with the tokens and pooled embedding of their conditioning images.

The training loader is the project's own because Ray Data 2.60 cannot resume inside an epoch (see docs/decisions/0002). It opens row
groups as the draws ask for them and keeps the last used, decoded, up to a number of bytes; which pair stands where is
`draw.PairStream`'s. Tokens are read from the encodings, or, when these hold none, computed from the stored pictures by a function
that is passed in; both give the same batches.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semantica.conditioning import Conditioning
from semantica.config import to_dict
from semantica.data.dataset import Manifest, read_manifest
from semantica.data.location import Location
from semantica.errors import DataError
from semantica.pairs.batch_memory import BatchMemory
from semantica.pairs.draw import Draw, PairStream
from semantica.pairs.open_group import OpenGroup, decode_at, to_unit
from semantica.pairs.row_groups import RowGroupReader
from semantica.pairs.selection import BandConfig, RowGroup, Selection, read_selection

logger = logging.getLogger(__name__)
__all__ = ["Batch", "PairLoader", "TokensOf", "decode_at", "stream_key", "to_unit"]

T = TypeVar("T")
R = TypeVar("R")

# Stored pictures -> tokens (M, N, D), float32, with the values that the encodings would hold.
TokensOf: TypeAlias = Callable[[Sequence[bytes]], Tensor]


@dataclass(frozen=True)
class Batch:
    """Target images x (b, 3, H, W) in [-1, 1], their conditioning, and the slots they fill of the whole batch."""

    x: Float[Tensor, "b c h w"]
    cond: Conditioning
    slots: range


# A picture: its row group, and there the row and which of the row's images.
_Image: TypeAlias = tuple[OpenGroup, int, int]


class PairLoader:
    """`loader.batch(step)`: this worker's share of the batch of `step`, the same whatever was loaded before."""

    def __init__(
        self,
        encodings: Location,
        selection: Location,
        *,
        seed: int,
        batch_size: int,
        num_lanes: int,
        resolution_px: int,
        rank: int = 0,
        world: int = 1,
        window_groups: int = 16,
        max_open_bytes: int = 2**31,
        tokens_of: TokensOf | None = None,
        max_images: int = 1,
        num_threads: int = 1,
    ) -> None:
        """max_open_bytes: of row groups kept in memory; those of one batch are kept whatever their size. No draw depends on it.

        tokens_of: needed when the encodings hold no tokens; asked once for a conditioning image while its row group is open.
        max_images: a target is conditioned on 1 to so many images of its page, as the draw says. num_threads: that decode a batch.
        """
        self.encodings, self.resolution_px, self.max_images = encodings, resolution_px, max_images
        self.manifest = read_manifest(encodings, "encodings")
        self.selection = read_selection(selection)
        _check_same_encodings(self.manifest, self.selection)
        columns = ["images", "pooled", *(["tokens"] if self.manifest.config["store_tokens"] else [])]
        self._reader = RowGroupReader(encodings, columns, stage="train", made_by="encode")
        if not self.manifest.config["store_tokens"] and tokens_of is None:
            raise DataError(f"train: {encodings} holds no tokens; pass tokens_of, or run jobs.encode with --store-tokens")
        self._tokens_of = tokens_of
        identity = self.manifest.facts["encoder"]
        self._token_shape = (identity["num_tokens"], identity["token_dim"])
        self._files = self.manifest.shards()
        scores = read_manifest(self.selection.scores, "scores")
        self._score_files = scores.shards()
        score_columns = ["num_images", self.selection.band.score]
        self._score_reader = RowGroupReader(self.selection.scores, score_columns, stage="train", made_by="pairs")
        self.stream = PairStream(
            self.selection.row_groups,
            stream_key(self.selection.band, scores),
            seed=seed,
            batch_size=batch_size,
            num_lanes=num_lanes,
            window_groups=window_groups,
        )
        self.slots = self.stream.slots(rank, world)
        self._open: OrderedDict[RowGroup, OpenGroup] = OrderedDict()
        self._in_batch: set[RowGroup] = set()
        self.max_open_bytes = max_open_bytes
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="loader") if num_threads > 1 else None
        self._memory = BatchMemory()
        lanes = {slot % num_lanes for slot in self.slots}
        self._warn_of_windows(len(lanes) * window_groups)
        # A target comes once an epoch: its pixels are worth their memory only where all are there when the next epoch begins.
        share = self.stream.num_draws_of(lanes)
        stored = sum(file.num_bytes for file in self._files) * share / self.stream.num_draws
        self._keeps_pixels = stored + share * 3 * resolution_px**2 <= max_open_bytes

    def batch(self, step: int) -> Batch:
        """Targets and conditioning of this worker's slots at `step`."""
        self._in_batch.clear()
        targets: list[_Image] = []
        similarity: list[float] = []
        conditions: list[_Image] = []
        places: list[tuple[int, int]] = []  # of each condition: the row of the batch, and which of the row's images it is
        for slot in self.slots:
            draw = self.stream.draw(step, slot)
            group = self._group(draw)
            row, target = group.targets[draw.index]
            images = self.stream.partners(draw, np.flatnonzero(group.partners[row][target]), self.max_images)
            places += [(len(targets), place) for place in range(len(images))]
            conditions += [(group, row, image) for image in images]
            scores = group.scores[row][target]
            similarity.append(float(scores[images].mean() if len(images) > 1 else scores[images[0]]))
            targets.append((group, row, target))
        self._compute_tokens(conditions)
        cond = self._conditioning(conditions, places, torch.tensor(similarity))
        x = self._pictures(targets)
        self._close_oldest()
        return Batch(x, cond, self.slots)

    def _pictures(self, targets: Sequence[_Image]) -> Float[Tensor, "b 3 h w"]:
        x = self._memory.new(len(targets), 3, self.resolution_px, self.resolution_px)

        def fill(index: int) -> UInt8[Tensor, "3 h w"]:
            group, row, image = targets[index]
            pixels = group.pixels(row, image)
            to_unit(pixels, out=x[index])
            return pixels

        for (group, row, image), pixels in zip(targets, self._each(fill, range(len(targets))), strict=True):
            if self._keeps_pixels:
                group.keep_pixels(row, image, pixels)
        return x

    def _each(self, function: Callable[[T], R], arguments: Iterable[T]) -> Iterable[R]:
        """The function's results in order, by all threads."""
        return map(function, arguments) if self._threads is None else self._threads.map(function, arguments)

    def _conditioning(self, conditions: Sequence[_Image], places: Sequence[tuple[int, int]], similarity: Tensor) -> Conditioning:
        shape = (len(similarity), self.max_images)
        tokens = self._memory.new(*shape, *self._token_shape)
        if len(places) < len(similarity) * self.max_images:
            tokens.zero_()
        pooled = torch.zeros(*shape, conditions[0][0].pooled[0].shape[1])
        present = torch.zeros(shape, dtype=torch.bool)

        def fill(index: int) -> None:
            group, row, image = conditions[index]
            tokens[places[index]] = group.tokens(row, image)

        list(self._each(fill, range(len(conditions))))
        rows, images = zip(*places, strict=True)
        pooled[rows, images] = torch.from_numpy(np.stack([group.pooled[row][image] for group, row, image in conditions])).float()
        present[rows, images] = True
        return Conditioning(tokens, pooled, present, similarity)

    def _compute_tokens(self, conditions: Sequence[_Image]) -> None:
        """Give every conditioning image its tokens: one call for all that are neither stored nor computed before."""
        missing = {
            (id(group), row, image): (group, row, image) for group, row, image in conditions if group.lacks_tokens(row, image)
        }
        if missing and self._tokens_of is not None:
            found = self._tokens_of([group.images[row][image]["bytes"] for group, row, image in missing.values()])
            for (group, row, image), tokens in zip(missing.values(), found, strict=True):
                group.keep_tokens(row, image, tokens)

    def _group(self, draw: Draw) -> OpenGroup:
        key = draw.group
        self._in_batch.add(key)
        if key not in self._open:
            table = self._reader.read(self._files[key.file], key.group)
            scores = self._score_reader.read(self._score_files[key.file], key.group)
            self._open[key] = OpenGroup(table, scores, self.selection, self._token_shape, self.resolution_px)
            self._close_oldest()
        self._open.move_to_end(key)
        return self._open[key]

    def _close_oldest(self) -> None:
        """Forget the row groups that were used longest ago, until the rest fits or is that of the current batch."""
        total = sum(group.num_bytes for group in self._open.values())
        for key in list(self._open):
            if total <= self.max_open_bytes:
                return
            if key not in self._in_batch:
                total -= self._open.pop(key).num_bytes

    def _warn_of_windows(self, num_open: int) -> None:
        """Say so when the row groups that the draws go to and fro between do not fit: each is then read many times."""
        mean = sum(file.num_bytes for file in self._files) / max(1, len(self.selection.row_groups))
        if min(num_open, len(self.selection.row_groups)) * mean > self.max_open_bytes:
            logger.warning(
                "train: the %d row groups of the windows take about %.1f GiB, more than the %.1f GiB that a worker keeps: "
                "each is read many times; raise cluster.loader_mb, or lower train.window_groups or train.num_lanes",
                num_open,
                num_open * mean / 2**30,
                self.max_open_bytes / 2**30,
            )


def stream_key(band: BandConfig, scores: Manifest) -> str:
    """What the draws are keyed by: the band and the bytes of the scores.

    Not a manifest's hash: that of encodings without tokens is another one, and the draws must be the same.
    """
    content = [to_dict(band), [[file.path, file.sha256] for file in scores.files]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_same_encodings(encodings: Manifest, selection: Selection) -> None:
    made_from = read_manifest(selection.scores, "scores").inputs["encodings"]
    if made_from != encodings.hash:
        raise DataError(
            "train: the selection was made from other encodings (another encoder, other pictures or other settings) "
            f"than the ones given: {made_from[:12]} is not {encodings.hash[:12]}; run jobs.pairs on these encodings"
        )
