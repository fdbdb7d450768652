"""Scores -> selection: which pairs may be drawn, as a view (column, low, high) with counts and the histogram of scores.

In: one small column of the scores. Out: a folder with a manifest and no data: the counts, the histogram, and the number of draws
per row group of the encodings, from which the loader finds the place of any step. Another band reads that column again and
nothing else; no picture is opened or copied. A *draw* is one target image with at least one partner in the band; the loader draws
the partner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from semantica.config import config, require
from semantica.data.dataset import Manifest, StageOutput, read_manifest
from semantica.data.location import Location, follow, relative
from semantica.errors import DataError
from semantica.pairs.scores import read_blocks

NUM_BINS = 80  # of width 0.025 over [-1, 1], so that 0.3 and 0.9 are edges


class EmptyBandError(DataError):
    """No pair lies in the band."""


@config
class BandConfig:
    """Keep a pair when low <= score <= high. score: "cosine" (the paper) or "centred_cosine" (corpus mean subtracted first)."""

    low: float = 0.3
    high: float = 0.9
    score: Literal["cosine", "centred_cosine"] = "cosine"

    def __post_init__(self) -> None:
        require(-1 <= self.low < self.high <= 1, "low", "at least -1 and below high, which is at most 1", (self.low, self.high))

    def holds(self, scores: Float[np.ndarray, "*m"]) -> Bool[np.ndarray, "*m"]:
        """True where a score is in the band. Compared as the float32 that is stored; NaN is in no band."""
        return (scores >= np.float32(self.low)) & (scores <= np.float32(self.high))


@dataclass(frozen=True)
class RowGroup:
    """One row group of the encodings (and of the scores, which mirror them): file index, group index, number of draws."""

    file: int
    group: int
    num_draws: int


@dataclass(frozen=True)
class Selection:
    """The view: its manifest, the band, the scores with their manifest, and the row groups with their draws."""

    manifest: Manifest
    band: BandConfig
    scores: Location
    scored: Manifest
    row_groups: tuple[RowGroup, ...]


@dataclass(frozen=True)
class ScoredPairs:
    """The pairs of consecutive episodes: file and row of the first episode, pictures per episode, and the scores of all pairs."""

    file: int
    first_row: int
    num_images: Int[np.ndarray, " e"]
    scores: Float[np.ndarray, " m"]

    @cached_property
    def first_image(self) -> Int[np.ndarray, " e"]:
        """The index of each episode's first picture, counted over all episodes."""
        first: np.ndarray = np.cumsum(self.num_images) - self.num_images
        return first

    @cached_property
    def ends(self) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
        """The two pictures of each pair, by their indices over all episodes.

        A triangle is stored row by row: picture t of n is the first of n - 1 - t pairs, with t + 1, t + 2, ...
        """
        total = int(self.num_images.sum())
        image = np.arange(total)
        num_begun = np.repeat(self.first_image + self.num_images, self.num_images) - 1 - image
        first = np.repeat(image, num_begun)
        position = np.arange(len(first)) - np.repeat(np.cumsum(num_begun) - num_begun, num_begun)
        return first, first + 1 + position


def score_rows(table: pa.Table, score: str) -> Iterator[tuple[int, Float[np.ndarray, " m"]]]:
    """(number of images, upper triangle of scores) of each episode."""
    for num_images, upper in zip(table["num_images"].to_pylist(), table[score], strict=True):
        yield num_images, upper.values.to_numpy()


def selection_stage(scores: Location, band: BandConfig, out: Location) -> StageOutput:
    """The output folder of the selection for `band` over a scores folder."""
    inputs = {"scores": read_manifest(scores, "scores").hash}
    # Relative, so that a run that is moved as a whole is still the same run.
    return StageOutput(out, "selection", band, inputs, further={"scores": relative(scores, out)})


def select(stage: StageOutput, scores: Location, band: BandConfig, watch: Callable[[ScoredPairs], None] | None = None) -> Manifest:
    """Fill a `selection_stage` that was opened; `watch` sees every pair once, in order. Raises DataError when no pair is kept."""
    return stage.finish(*count_pairs(scores, band, watch))


def count_pairs(
    scores: Location, band: BandConfig, watch: Callable[[ScoredPairs], None] | None = None
) -> tuple[dict[str, int], dict[str, Any]]:
    """Counts and facts of the selection for a band. Raises DataError when no pair is kept."""
    source = read_manifest(scores, "scores")
    histogram = np.zeros(NUM_BINS, np.int64)
    counts = {"num_episodes": 0, "num_episodes_kept": 0, "num_images": 0, "num_targets": 0, "num_pairs": 0, "num_pairs_kept": 0}
    groups: list[list[int]] = []
    for file_index, entry in enumerate(source.shards()):
        per_episode = [np.zeros(0, np.int64)]
        for first_row, table in read_blocks(scores, entry, ["num_images", band.score]):
            block = _scored_pairs(scores / entry.path, file_index, first_row, table, band.score)
            kept = np.flatnonzero(band.holds(block.scores))
            targets = _targets(block, kept)
            per_episode.append(targets)
            histogram += np.histogram(block.scores, bins=NUM_BINS, range=(-1, 1))[0]
            counts["num_episodes"] += len(targets)
            counts["num_episodes_kept"] += int(np.count_nonzero(targets))
            counts["num_images"] += int(block.num_images.sum())
            counts["num_targets"] += int(targets.sum())
            counts["num_pairs"] += len(block.scores)
            counts["num_pairs_kept"] += len(kept)
            if watch is not None:
                watch(block)
        draws = np.diff(np.concatenate([[0], np.cumsum(np.concatenate(per_episode))])[np.cumsum([0, *entry.row_group_rows])])
        groups += [[file_index, group, num] for group, num in enumerate(draws.tolist())]
    if counts["num_pairs_kept"] == 0:
        raise EmptyBandError(
            f"pairs: none of {counts['num_pairs']} pairs has {band.low} <= {band.score} <= {band.high}; widen the band"
            + _where(histogram)
        )
    return counts, {"histogram": histogram.tolist(), "histogram_range": [-1, 1], "row_groups": groups}


def _scored_pairs(path: Location, file: int, first_row: int, table: pa.Table, score: str) -> ScoredPairs:
    column = table[score].combine_chunks()
    num_images = table["num_images"].to_numpy().astype(np.int64)
    if not np.array_equal(np.diff(column.offsets.to_numpy()), num_images * (num_images - 1) // 2):
        raise DataError(
            f"{path}: {score} does not hold n(n-1)/2 scores for each episode; delete {path.parent} and run semantica pairs again"
        )
    return ScoredPairs(file, first_row, num_images, column.flatten().to_numpy())


def _targets(block: ScoredPairs, kept: Int[np.ndarray, " k"]) -> Int[np.ndarray, " e"]:
    """How many pictures of each episode have a partner among the pairs `kept` (indices)."""
    first, second = block.ends
    is_target = np.zeros(int(block.num_images.sum()), np.bool_)
    is_target[first[kept]] = True
    is_target[second[kept]] = True
    before = np.concatenate([[0], np.cumsum(is_target)])
    targets: np.ndarray = before[block.first_image + block.num_images] - before[block.first_image]
    return targets


def _where(histogram: Int[np.ndarray, " b"]) -> str:
    total = int(histogram.sum())
    if not total:
        return ""
    edges = np.linspace(-1, 1, NUM_BINS + 1)
    at = np.searchsorted(np.cumsum(histogram), [0.05 * total, 0.95 * total])
    return f" (nine tenths of them lie in [{edges[at[0]]:.3f}, {edges[at[1] + 1]:.3f}])"


def shares(counts: Mapping[str, int]) -> dict[str, float]:
    """The shares that the band keeps, each 0-1: of pairs, of episodes, and of pictures as targets."""
    parts = {"pairs_yield": "pairs_kept", "episodes_yield": "episodes_kept", "targets_share": "targets"}
    wholes = {"pairs_yield": "pairs", "episodes_yield": "episodes", "targets_share": "images"}
    return {name: counts[f"num_{part}"] / max(1, counts[f"num_{wholes[name]}"]) for name, part in parts.items()}


def read_selection(folder: Location) -> Selection:
    """A finished selection. Raises DataError when it or its scores are missing, or when the scores have changed since."""
    manifest = read_manifest(folder, "selection")
    values = dict(manifest.config)
    scores = follow(values.pop("scores"), folder)
    scored = read_manifest(scores, "scores")
    if scored.hash != manifest.inputs["scores"]:
        raise DataError(
            f"selection: {folder} was made from other scores than {scores} holds now; delete {folder} and run semantica pairs again"
        )
    return Selection(manifest, BandConfig(**values), scores, scored, tuple(RowGroup(*g) for g in manifest.facts["row_groups"]))
