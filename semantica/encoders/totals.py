"""Receipts of encoded shards -> the shards that are missing, the losses, and the manifest of the encodings.

In: the episodes' manifest and the receipts of `shard.encode_shard`. Out: the shards to encode (those without a receipt, and damaged
ones, which may have been restored since); a DataError when too many pictures are lost; at the end a manifest with the corpus mean
and with counts that account for every input picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from semantica.data.dataset import FileEntry, Manifest, StageOutput
from semantica.encoders.shard import EpisodesShard
from semantica.errors import DataError

_COUNTS = (
    "num_episodes", "num_train_images", "num_held_out_images", "num_undecodable_images", "num_episodes_lost",
    "num_damaged_shards", "num_damaged_images",
)  # fmt: skip

_QUARANTINED = "num_quarantined_"  # prefix of ingest's counts per reason


def counts_of(stats: Mapping[str, Any]) -> Counter[str]:
    """The counts of one receipt, which may be summed over receipts."""
    counts = Counter(dict.fromkeys(_COUNTS, 0))
    for prefix, split in stats["splits"].items():
        counts["num_held_out_images" if prefix else "num_train_images"] += split["num_images"]
        counts["num_episodes"] += 0 if prefix else split["num_episodes"]
        counts["num_undecodable_images"] += split["num_undecodable"]
        counts["num_episodes_lost"] += split["num_episodes_lost"]
    for damage in stats["damaged"].values():
        counts["num_damaged_shards"] += 1
        counts["num_damaged_images"] += damage["num_images"] or 0
    return counts


def num_pictures(counts: Mapping[str, int]) -> int:
    """The number of pictures accounted for: encoded, undecodable or in damaged files."""
    return counts["num_train_images"] + counts["num_held_out_images"] + num_lost(counts)


def num_lost(counts: Mapping[str, int]) -> int:
    """The number of pictures without an encoding."""
    return counts["num_undecodable_images"] + counts["num_damaged_images"]


def num_in(episodes: Manifest) -> int:
    """The number of input pictures."""
    return int(episodes.counts["num_train_images"] + episodes.counts["num_held_out_images"])


def shards_of(episodes: Manifest, prefixes: tuple[str, ...]) -> list[EpisodesShard]:
    """The shards of an episodes dataset, each with its files in all sub-folders."""
    shards: dict[str, dict[str, FileEntry]] = {}
    for prefix in prefixes:
        for entry in episodes.shards(prefix):
            shards.setdefault(PurePosixPath(entry.path).stem, {})[prefix] = entry
    return [EpisodesShard(name, entries) for name, entries in shards.items()]


def finished_shards(stage: StageOutput) -> dict[str, Counter[str]]:
    """name -> counts, of the shards that are encoded without damage."""
    return {name: counts_of(stats) for name, stats in stage.receipts() if not stats["damaged"]}


def check_damage(counts: Mapping[str, int], total: int, most: float, example: str = "") -> None:
    """Raise DataError when more than the share `most` of `total` pictures is lost."""
    lost = num_lost(counts)
    if lost > most * total:
        raise DataError(
            f"encode: {lost} of {total} pictures are lost ({counts['num_damaged_images']} in {counts['num_damaged_shards']} "
            f"damaged files, {counts['num_undecodable_images']} undecodable{example and f'; {example}'}), more than "
            f"max_damaged_share = {most:g} allows; restore the episodes, run semantica ingest again, or pass --max-damaged-share"
        )


def finish_encodings(stage: StageOutput, episodes: Manifest, most: float) -> Manifest:
    """Write the manifest. Raises DataError when too many pictures are lost, or the shards were made by different weights."""
    counts = Counter(dict.fromkeys(_COUNTS, 0))
    pooled_sum: np.ndarray | float = 0.0
    identity, damaged = None, []
    for _, stats in stage.receipts():
        if identity not in (None, stats["encoder"]):
            raise DataError(
                f"encode: the shards of {stage.folder} were made by different weights under one name, which changed between two "
                "runs; delete the folder and run semantica encode again"
            )
        identity = stats["encoder"]
        counts.update(counts_of(stats))
        pooled_sum = pooled_sum + np.array(stats["splits"].get("", {}).get("pooled_sum", 0.0))
        damaged += [dict(damage) for damage in stats["damaged"].values()]
    total = num_in(episodes)
    # Without ingest's receipts, all pictures that are not accounted for were in the damaged files.
    if any(damage["num_images"] is None for damage in damaged):
        counts["num_damaged_images"] += total - num_pictures(counts)
    assert num_pictures(counts) == total, (dict(counts), total)
    check_damage(counts, total, most, _example(damaged))
    mean = np.asarray(pooled_sum) / max(1, counts["num_train_images"])
    facts = {
        "pictures": episodes.facts["pictures"],
        "encoder": identity,
        "corpus_mean": mean.tolist(),
        "damaged": damaged,
        "quarantined": _quarantined(episodes, counts),
    }
    return stage.finish(counts, facts)


def _quarantined(episodes: Manifest, counts: Mapping[str, int]) -> dict[str, int]:
    """Reason -> number of pictures that ingest refused or this stage lost."""
    refused = {name.removeprefix(_QUARANTINED): n for name, n in episodes.counts.items() if name.startswith(_QUARANTINED)}
    lost = {"undecodable_when_encoded": counts["num_undecodable_images"], "in_damaged_files": counts["num_damaged_images"]}
    return {reason: n for reason, n in {**refused, **lost}.items() if n}


def damage_notes(encodings: Manifest) -> list[str]:
    """One line per kind of loss, for a person; no line when nothing was lost."""
    counts, notes = encodings.counts, []
    if counts["num_damaged_shards"]:
        notes.append(
            f"{counts['num_damaged_images']} pictures in {counts['num_damaged_shards']} damaged files of the episodes are left "
            f"out, {_example(encodings.facts['damaged'])}; to add them, restore the files, delete manifest.json of the encodings "
            "and run again"
        )
    if counts["num_undecodable_images"]:
        notes.append(
            f"{counts['num_undecodable_images']} stored pictures do not decode and are listed in quarantine/; "
            f"{counts['num_episodes_lost']} episodes had no other pictures and are lost"
        )
    return notes


def _example(damaged: list[dict[str, Any]]) -> str:
    return f"the first {damaged[0]['path']}: {damaged[0]['reason']}" if damaged else ""
