"""Encodings + selection -> training batches: target pictures with the tokens and pooled embeddings of their conditioning images.

The loader is the project's own because Ray Data 2.60 cannot resume inside an epoch (docs/decisions/0002). It opens row groups as
the draws ask for them, and keeps the last used ones, decoded, up to a number of bytes; `draw.PairStream` decides which pair stands
in which slot. Tokens are read from the encodings. Where these hold none, a function that is passed in computes them from the
stored pictures; both give the same batches.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from semantica.conditioning.signals import IMAGES, SIMILARITY, Signal
from semantica.conditioning.values import Conditioning, SignalValues
from semantica.config import to_dict
from semantica.config.registry import Registry
from semantica.data.dataset import Manifest, RowGroups, read_manifest
from semantica.data.location import Location
from semantica.data.pictures import TokensOf, decode
from semantica.data.schemas import token_rows
from semantica.errors import DataError
from semantica.pairs.draw import Draw, PairStream, generator
from semantica.pairs.scores import pooled_rows, square
from semantica.pairs.selection import BandConfig, RowGroup, Selection, read_selection, score_rows

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Batch:
    """Target images x (b, 3, H, W) in [-1, 1], their conditioning, and which slots of the whole batch they fill.

    recycle() tells the loader that nobody reads this batch any longer: the memory of its large tensors is then written again. A
    batch that is never recycled stays what it is.
    """

    x: Float[Tensor, "b c h w"]
    cond: Conditioning
    slots: range
    recycle: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Batches:
    """Which batches a loader makes: settings of the recipe, on which every draw depends.

    max_images: a target is conditioned on 1 to max_images images of its page; the draw says on how many. signals: what else the
    batches hold, each from its registered source.
    """

    seed: int
    batch_size: int
    num_lanes: int
    resolution_px: int
    window_groups: int = 16
    max_images: int = 1
    signals: tuple[Signal, ...] = ()


@dataclass(frozen=True)
class SelectedPairs:
    """What a training draws from: encodings with their manifest, and a selection of their pairs. It pickles."""

    encodings: Location
    manifest: Manifest
    selection: Selection

    def stream(self, batches: Batches) -> PairStream:
        """The stream of the draws. Raises ConfigError when these pairs or the size of a batch do not fill the lanes."""
        return PairStream(
            self.selection.row_groups,
            stream_key(self.selection.band, self.selection.scored),
            seed=batches.seed,
            batch_size=batches.batch_size,
            num_lanes=batches.num_lanes,
            window_groups=batches.window_groups,
        )


def open_pairs(encodings: Location, selection: Location) -> SelectedPairs:
    """Encodings and a selection of their pairs. Raises DataError when one is missing or was made from something else."""
    manifest, chosen = read_manifest(encodings, "encodings"), read_selection(selection)
    made_from = chosen.scored.inputs["encodings"]
    if made_from != manifest.hash:
        raise DataError(
            "train: the selection was made from other encodings (another encoder, other pictures or other settings) "
            f"than the ones given: {made_from[:12]} is not {manifest.hash[:12]}; run semantica pairs on these encodings"
        )
    return SelectedPairs(encodings, manifest, chosen)


@dataclass(frozen=True)
class LoaderWorker:
    """Worker `rank` of `world`: its share of every batch, and what it may use. No draw depends on max_open_bytes or num_threads.

    max_open_bytes bounds the row groups kept in memory; those of one batch are kept whatever their size.
    """

    rank: int = 0
    world: int = 1
    max_open_bytes: int = 2**31
    num_threads: int = 1


@dataclass(frozen=True)
class Pair:
    """One example: a target and its conditioning images, by their indices in a row of an open row group."""

    group: OpenGroup
    row: int
    target: int
    images: list[int]


Source: TypeAlias = Callable[[Signal, Sequence[Pair], Float[Tensor, "b 3 h w"]], SignalValues]
"""(signal, pairs of a batch, their target pictures x) -> the signal's values, which depend on these alone."""

SOURCES: Registry[Source] = Registry("source of the signal", "semantica.applications")
"""Where the loader takes each declared signal from, by the signal's name: `@SOURCES.register("caption")`."""


class PairLoader:
    """`loader.batch(step)`: this worker's share of the batch of `step`, the same whatever was loaded before."""

    def __init__(
        self,
        pairs: SelectedPairs,
        batches: Batches,
        worker: LoaderWorker = LoaderWorker(),
        *,
        tokens_of: TokensOf | None = None,
    ) -> None:
        """tokens_of: for encodings without tokens; called once per conditioning image while its row group is open."""
        self.batches, self.manifest, self.selection = batches, pairs.manifest, pairs.selection
        columns = ["images", "pooled", *(["tokens"] if self.manifest.config["store_tokens"] else [])]
        self._reader = RowGroups(pairs.encodings, columns, stage="train", made_by="encode")
        if not self.manifest.config["store_tokens"] and tokens_of is None:
            message = "holds no tokens; pass tokens_of, or run semantica encode with --store-tokens"
            raise DataError(f"train: {pairs.encodings} {message}")
        self._tokens_of = tokens_of
        identity = self.manifest.facts["encoder"]
        self._token_shape = (identity["num_tokens"], identity["token_dim"])
        self._files = self.manifest.shards()
        self._score_files = self.selection.scored.shards()
        score_columns = ["num_images", self.selection.band.score]
        self._score_reader = RowGroups(self.selection.scores, score_columns, stage="train", made_by="pairs")
        self.stream = pairs.stream(batches)
        self.slots = self.stream.slots(worker.rank, worker.world)
        self._open: OrderedDict[RowGroup, OpenGroup] = OrderedDict()
        self._in_batch: set[RowGroup] = set()
        self.max_open_bytes = worker.max_open_bytes
        threads = worker.num_threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="loader") if threads > 1 else None
        self._memory = BatchMemory()
        lanes = {slot % batches.num_lanes for slot in self.slots}
        self._warn_of_windows(len(lanes) * batches.window_groups)
        # A target comes once an epoch: keeping its pixels pays only where all of them are still there in the next epoch.
        share = self.stream.num_draws_of(lanes)
        stored = sum(file.num_bytes for file in self._files) * share / self.stream.num_draws
        self._keeps_pixels = stored + share * 3 * batches.resolution_px**2 <= self.max_open_bytes

    def batch(self, step: int) -> Batch:
        """Targets and conditioning of this worker's slots at `step`."""
        self._in_batch.clear()
        pairs = [self._pair(step, slot) for slot in self.slots]
        self._compute_tokens(pairs)
        signals = {IMAGES: self._images(pairs), SIMILARITY: _similarity(pairs)}
        x = self._pictures(pairs)
        for signal in self.batches.signals:
            signals[signal.name] = SOURCES[signal.name](signal, pairs, x)
        cond = Conditioning(signals)
        self._close_oldest()
        return Batch(x, cond, self.slots, self._memory.to_recycle(x, cond.tokens))

    def token_statistics(self, num_pictures: int = 1024) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """Mean and standard deviation per channel over the tokens of at least num_pictures pictures, or of all there are.

        They are those of row groups that depend on the seed alone, the same for every worker.
        """
        groups = [group for group in self.selection.row_groups if group.num_draws]
        count, total, squares = 0, np.zeros(self._token_shape[1]), np.zeros(self._token_shape[1])
        for place in generator(self.batches.seed, "statistics").permutation(len(groups)):
            table = self._reader.read(self._files[groups[place].file], groups[place].group)
            for tokens in self._tokens_in(table):
                values = tokens.reshape(-1, self._token_shape[1]).astype(np.float64)
                count, total, squares = count + len(values), total + values.sum(0), squares + (values**2).sum(0)
            if count >= num_pictures * self._token_shape[0]:
                break
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return torch.from_numpy(mean).float(), torch.from_numpy(std).float()

    def _tokens_in(self, table: pa.Table) -> Iterable[np.ndarray]:
        if "tokens" in table.column_names:
            return token_rows(table["tokens"])
        assert self._tokens_of is not None
        rows = ([image["bytes"] for image in row] for row in table["images"].to_pylist())
        return map(np.asarray, map(self._tokens_of, rows))

    def _pair(self, step: int, slot: int) -> Pair:
        draw = self.stream.draw(step, slot)
        group = self._group(draw)
        row, target = group.targets[draw.index]
        images = self.stream.partners(draw, np.flatnonzero(group.partners[row][target]), self.batches.max_images)
        return Pair(group, row, target, images)

    def _pictures(self, pairs: Sequence[Pair]) -> Float[Tensor, "b 3 h w"]:
        x = self._memory.new(len(pairs), 3, self.batches.resolution_px, self.batches.resolution_px)

        def fill(index: int) -> UInt8[Tensor, "3 h w"]:
            pair = pairs[index]
            pixels = pair.group.pixels(pair.row, pair.target)
            to_unit(pixels, out=x[index])
            return pixels

        for pair, pixels in zip(pairs, self._each(fill, range(len(pairs))), strict=True):
            if self._keeps_pixels:
                pair.group.keep_pixels(pair.row, pair.target, pixels)
        return x

    def _each(self, function: Callable[[T], R], arguments: Iterable[T]) -> Iterable[R]:
        """The function's results in order, by all threads."""
        return map(function, arguments) if self._threads is None else self._threads.map(function, arguments)

    def _images(self, pairs: Sequence[Pair]) -> SignalValues:
        shape = (len(pairs), self.batches.max_images)
        places = [(index, place) for index, pair in enumerate(pairs) for place in range(len(pair.images))]
        tokens = self._memory.new(*shape, *self._token_shape)
        if len(places) < shape[0] * shape[1]:
            tokens.zero_()

        def fill(at: tuple[int, int]) -> np.ndarray:
            pair, image = pairs[at[0]], pairs[at[0]].images[at[1]]
            tokens[at] = pair.group.tokens(pair.row, image)
            embedding: np.ndarray = pair.group.pooled[pair.row][image]
            return embedding

        vectors = torch.from_numpy(np.stack(list(self._each(fill, places)))).float()
        pooled, present = torch.zeros(*shape, vectors.shape[1]), torch.zeros(shape, dtype=torch.bool)
        rows, columns = zip(*places, strict=True)
        pooled[rows, columns] = vectors
        present[rows, columns] = True
        return SignalValues({"tokens": tokens, "pooled": pooled}, present)

    def _compute_tokens(self, pairs: Sequence[Pair]) -> None:
        """Compute the tokens of the conditioning images that have none yet, stored or computed, in one call."""
        missing = {
            (id(pair.group), pair.row, image): (pair.group, pair.row, image)
            for pair in pairs
            for image in pair.images
            if pair.group.lacks_tokens(pair.row, image)
        }
        if missing and self._tokens_of is not None:
            computed = self._tokens_of([group.images[row][image]["bytes"] for group, row, image in missing.values()])
            for (group, row, image), tokens in zip(missing.values(), computed, strict=True):
                group.keep_tokens(row, image, tokens)

    def _group(self, draw: Draw) -> OpenGroup:
        key = draw.group
        self._in_batch.add(key)
        if key not in self._open:
            table = self._reader.read(self._files[key.file], key.group)
            scores = self._score_reader.read(self._score_files[key.file], key.group)
            self._open[key] = OpenGroup(table, scores, self.selection, self._token_shape, self.batches.resolution_px)
            self._close_oldest()
        self._open.move_to_end(key)
        return self._open[key]

    def _close_oldest(self) -> None:
        """Close the least recently used row groups until the others fit, but none of the current batch."""
        total = sum(group.num_bytes for group in self._open.values())
        for key in list(self._open):
            if total <= self.max_open_bytes:
                return
            if key not in self._in_batch:
                total -= self._open.pop(key).num_bytes

    def _warn_of_windows(self, num_open: int) -> None:
        """Warn when the row groups of all windows do not fit into memory: each is then read many times."""
        mean = sum(file.num_bytes for file in self._files) / max(1, len(self.selection.row_groups))
        if min(num_open, len(self.selection.row_groups)) * mean > self.max_open_bytes:
            logger.warning(
                "train: the %d row groups of the windows take about %.1f GiB, more than the %.1f GiB that a worker keeps: "
                "each is read many times; raise cluster.loader_mb, or lower train.window_groups or train.num_lanes",
                num_open,
                num_open * mean / 2**30,
                self.max_open_bytes / 2**30,
            )


class OpenGroup:
    """One row group in memory: its pictures, which of them may be targets, with which partners, and their pixels and tokens.

    A picture is decoded when it is first used. `num_bytes` grows with what is decoded and computed.
    """

    def __init__(self, table: pa.Table, scores: pa.Table, selection: Selection, shape: tuple[int, int], resolution_px: int) -> None:
        self.images = table["images"].to_pylist()
        self.pooled = pooled_rows(table["pooled"])
        self._stored: list[Float16[Tensor, "m n d"]] | None = None
        if "tokens" in table.column_names:
            # DLPack shares the memory, which NumPy marks read-only; nobody writes to it.
            flat = [from_dlpack(pa.array(tokens.reshape(-1))) for tokens in token_rows(table["tokens"])]
            self._stored = [values.view(-1, *shape) for values in flat]
        self._computed: dict[tuple[int, int], Tensor] = {}  # float16, as stored tokens are
        self.resolution_px = resolution_px
        self.scores = [square(upper, n) for n, upper in score_rows(scores, selection.band.score)]
        self.partners = [selection.band.holds(matrix) for matrix in self.scores]
        self.targets = [(row, int(t)) for row, allowed in enumerate(self.partners) for t in np.flatnonzero(allowed.any(1))]
        self._pixels: dict[tuple[int, int], Tensor] = {}
        self.num_bytes = sum(len(image["bytes"]) for row in self.images for image in row)
        self.num_bytes += sum(
            array.nbytes for held in (self.pooled, self._stored or [], self.scores, self.partners) for array in held
        )

    def pixels(self, row: int, image: int) -> UInt8[Tensor, "3 h w"]:
        """The pixels of a picture, decoded now unless they were kept. Several threads may call it at once."""
        kept = self._pixels.get((row, image))
        return decode(self.images[row][image]["bytes"], self.resolution_px) if kept is None else kept

    def keep_pixels(self, row: int, image: int, pixels: UInt8[Tensor, "3 h w"]) -> None:
        """Keep the pixels of a picture for as long as the row group is open."""
        if (row, image) not in self._pixels:
            self._pixels[row, image] = pixels
            self.num_bytes += pixels.nbytes

    def lacks_tokens(self, row: int, image: int) -> bool:
        """Whether the tokens of a picture are neither stored nor computed."""
        return self._stored is None and (row, image) not in self._computed

    def keep_tokens(self, row: int, image: int, tokens: Float[Tensor, "n d"]) -> None:
        """Keep computed tokens of a picture for as long as the row group is open."""
        self._computed[row, image] = tokens.half()
        self.num_bytes += self._computed[row, image].nbytes

    def tokens(self, row: int, image: int) -> Float16[Tensor, "n d"]:
        """The tokens of a picture, stored or computed."""
        return self._computed[row, image] if self._stored is None else self._stored[row][image]


class BatchMemory:
    """The memory of large batch tensors. It owns what was recycled, and gives each piece to one new tensor at a time.

    The system clears new memory page by page: in new memory a batch of 64 targets of 256 px takes 1.5 times the CPU time that it
    takes in recycled memory (docs/decisions). A tensor that is not recycled is freed as any other.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[Tensor]] = defaultdict(list)

    def new(self, *shape: int) -> Float[Tensor, ...]:
        """An uninitialised float32 tensor."""
        try:
            return self._free[math.prod(shape)].pop().view(shape)  # pop is atomic: two threads never get one piece
        except IndexError:
            return torch.empty(shape)

    def to_recycle(self, *tensors: Tensor) -> Callable[[], None]:
        """A function that takes these tensors back when it is first called, and does nothing later."""
        lent = list(tensors)

        def recycle() -> None:
            while lent:
                tensor = lent.pop()
                self._free[tensor.numel()].append(tensor.view(-1))

        return recycle


def _similarity(pairs: Sequence[Pair]) -> SignalValues:
    """The mean score of each target with its conditioning images."""
    values: list[float] = []
    for pair in pairs:
        scores = pair.group.scores[pair.row][pair.target]
        values.append(float(scores[pair.images].mean() if len(pair.images) > 1 else scores[pair.images[0]]))
    return SignalValues({SIMILARITY: torch.tensor(values)}, torch.ones(len(pairs), dtype=torch.bool))


def to_unit(pixels: UInt8[Tensor, "... 3 h w"], out: Float[Tensor, "... 3 h w"] | None = None) -> Float[Tensor, "... 3 h w"]:
    """uint8 [0, 255] as float32 [-1, 1]; in `out` when given."""
    unit = pixels.float() if out is None else out.copy_(pixels)
    return unit.div_(127.5).sub_(1)  # in place: new memory costs more than the arithmetic


def stream_key(band: BandConfig, scores: Manifest) -> str:
    """The key of the draws: the band and the bytes of the scores.

    Not a manifest's hash, which differs for encodings without tokens, although their draws must be the same.
    """
    content = [to_dict(band), [[file.path, file.sha256] for file in scores.files]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
