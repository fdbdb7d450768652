"""Scores -> selection: which pairs may be drawn, as a view (column, low, high) with counts and the histogram of scores.

In: one small column of the scores. Out: a folder with a manifest and no data: the counts, the histogram, and how many draws
each row group of the encodings offers, which is all the loader needs to find its place. Changing the band re-reads that column
and nothing else. A *draw* is one target image with at least one partner in the band; its partner is drawn by the loader.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from semantica.config import config, require, to_dict
from semantica.datasets import Manifest, StageOutput, read_manifest, read_shard
from semantica.errors import DataError
from semantica.pairs.scores import square

NUM_BINS = 80  # of width 0.025 over [-1, 1], so that 0.3 and 0.9 are edges


@config
class BandConfig:
    """Keep a pair when low <= score <= high. score: "cosine" (the paper) or "centred_cosine" (corpus mean subtracted first)."""

    low: float = 0.3
    high: float = 0.9
    score: Literal["cosine", "centred_cosine"] = "cosine"

    def __post_init__(self) -> None:
        require(-1 <= self.low < self.high <= 1, "band", "-1 <= low < high <= 1", (self.low, self.high))


@dataclass(frozen=True)
class RowGroup:
    """One row group of the encodings (and of the scores, which mirror them): file index, group index, number of draws."""

    file: int
    group: int
    num_draws: int


@dataclass(frozen=True)
class Selection:
    """The view: its manifest, the band, and the row groups with their draws."""

    manifest: Manifest
    band: BandConfig
    scores: Path
    row_groups: tuple[RowGroup, ...]


def partners(upper: Float[np.ndarray, " m"], num_images: int, band: BandConfig) -> Bool[np.ndarray, "n n"]:
    """(n, n): True at [target, conditioning] where the pair is in the band."""
    matrix = square(upper, num_images)
    return (matrix >= np.float32(band.low)) & (matrix <= np.float32(band.high))  # NaN compares False


def score_rows(table: pa.Table, score: str) -> Iterator[tuple[int, Float[np.ndarray, " m"]]]:
    """(number of images, upper triangle of scores) of each episode."""
    for num_images, upper in zip(table["num_images"].to_pylist(), table[score], strict=True):
        yield num_images, upper.values.to_numpy()


def selection_stage(scores: Path, band: BandConfig, out: Path) -> StageOutput:
    """The output folder of the selection for `band` over a scores folder."""
    inputs = {"scores": read_manifest(scores, "scores").hash}
    # Relative, so that a run that is moved as a whole is still the same run; resolved, since ".." of a link is its target's parent.
    return StageOutput(out, "selection", to_dict(band) | {"scores": os.path.relpath(scores.resolve(), out.resolve())}, inputs)


def select(stage: StageOutput, scores: Path, band: BandConfig) -> Manifest:
    """Fill a `selection_stage` that was opened. Raises DataError when no pair is left to train on."""
    source = read_manifest(scores, "scores")
    histogram = np.zeros(NUM_BINS, np.int64)
    counts = {"num_episodes": 0, "num_episodes_kept": 0, "num_images": 0, "num_targets": 0, "num_pairs": 0, "num_pairs_kept": 0}
    groups: list[list[int]] = []
    for file_index, entry in enumerate(source.shards()):
        table = read_shard(scores, entry, ["num_images", band.score])
        rows = score_rows(table, band.score)
        for group_index, num_rows in enumerate(entry.row_group_rows):
            draws = 0
            for _ in range(num_rows):
                num_images, upper = next(rows)
                kept = partners(upper, num_images, band)
                targets = int(kept.any(1).sum())
                draws += targets
                histogram += np.histogram(upper, bins=NUM_BINS, range=(-1, 1))[0]
                counts["num_episodes"] += 1
                counts["num_episodes_kept"] += targets > 0
                counts["num_images"] += num_images
                counts["num_targets"] += targets
                counts["num_pairs"] += len(upper)
                counts["num_pairs_kept"] += int(kept.sum()) // 2
            groups.append([file_index, group_index, draws])
    if counts["num_pairs_kept"] == 0:
        raise DataError(f"pairs: none of {counts['num_pairs']} pairs has {band.low} <= {band.score} <= {band.high}; widen the band")
    return stage.finish(counts, {"histogram": histogram.tolist(), "histogram_range": [-1, 1], "row_groups": groups})


def read_selection(folder: Path) -> Selection:
    """A finished selection. Raises DataError when it or its scores are missing, or when the scores have changed since."""
    manifest = read_manifest(folder, "selection")
    values = dict(manifest.config)
    scores = (folder.resolve() / values.pop("scores")).resolve()
    if read_manifest(scores, "scores").hash != manifest.inputs["scores"]:
        raise DataError(f"selection: {folder} was made from other scores than {scores} holds now; run jobs.pairs --fresh")
    return Selection(manifest, BandConfig(**values), scores, tuple(RowGroup(*g) for g in manifest.facts["row_groups"]))
