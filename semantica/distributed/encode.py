"""Stage `encode`: episodes -> encodings, by a pool of actors that each hold the encoder (Ray Data)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from semantica.data.dataset import FileEntry, Manifest, StageOutput, read_manifest
from semantica.data.location import Location, location
from semantica.distributed.session import stage_session
from semantica.distributed.shards import check_actor, in_actors, with_meter
from semantica.encoders.encode import EncodeConfig
from semantica.encoders.encoder import load_encoder
from semantica.encoders.shard import EpisodesShard, encode_shard
from semantica.encoders.totals import (
    check_damage,
    counts_of,
    damage_notes,
    encoded_so_far,
    finish_encodings,
    num_in,
    num_lost,
    num_pictures,
    shards_of,
)
from semantica.runtime import Runtime
from semantica.tracking import Run

HELD_OUT = "held_out"


class _EncodeShard:
    """One actor: the encoder, and the shards it is given."""

    def __init__(self, config: EncodeConfig, episodes: Location, stage: StageOutput) -> None:
        self.config, self.episodes, self.stage = config, episodes, stage
        self.encoder = load_encoder(config.encoder, "cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, shard: dict[str, Any]) -> dict[str, int]:
        entries = {
            prefix: FileEntry(**{**entry, "row_group_rows": tuple(entry["row_group_rows"])})
            for prefix, entry in shard["entries"].items()
        }
        stats = encode_shard(self.stage, self.episodes, EpisodesShard(shard["name"], entries), self.encoder, self.config)
        return dict(counts_of(stats))


def encode(
    config: EncodeConfig,
    *,
    episodes: str | Path | Location,
    out: str | Path | Location,
    runtime: Runtime,
    parent: Run | None = None,
) -> Manifest:
    """Encode every picture of `episodes` (training and held-out) into `out`. Returns the manifest of the encodings.

    A damaged shard is left out, whole, and said; when more than runtime.max_damaged_share of the pictures are lost, DataError.
    """
    episodes = location(episodes)
    source = read_manifest(episodes, "episodes")
    stage = StageOutput(location(out), "encodings", config, {"episodes": source.hash})
    arguments = (config, episodes, stage)
    ready = partial(check_actor, _EncodeShard, arguments, runtime.cluster)
    with stage_session("encode", stage, runtime, parent, ready=ready) as session:
        if session.done is not None:
            return session.done
        done = encoded_so_far(stage)
        counts = sum(done.values(), Counter())
        todo = [asdict(shard) for shard in shards_of(source, ("", HELD_OUT)) if shard.name not in done]
        results = in_actors(_EncodeShard, arguments, todo, runtime.cluster)
        watched = _watch(results, counts, num_in(source), runtime.max_damaged_share)
        with_meter(watched, "encode", num_in(source) - num_pictures(counts), "pictures", num_pictures)
        manifest = finish_encodings(stage, source, runtime.max_damaged_share)
        session.run.metrics(manifest.counts)
        session.summary = f"{num_in(source) - num_lost(manifest.counts)} pictures by {manifest.facts['encoder']['name']}"
        session.notes += damage_notes(manifest)
        return manifest


def _watch(results: Iterator[dict[str, int]], counts: Counter[str], total: int, most: float) -> Iterator[dict[str, int]]:
    """The same results; ends the job, by a DataError, at the one that makes the loss too large."""
    for result in results:
        counts = counts + Counter(result)
        check_damage(counts, total, most)
        yield result
