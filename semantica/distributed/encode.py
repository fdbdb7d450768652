"""Stage `encode`: episodes -> encodings, by a pool of actors that each hold the encoder (Ray Data)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from semantica.config import from_dict, to_dict
from semantica.datasets import FileEntry, Manifest, StageOutput, read_manifest, read_shard
from semantica.distributed.session import stage_session
from semantica.distributed.shards import in_actors, with_meter
from semantica.encoders.dinov2 import load_encoder
from semantica.encoders.encode import EncodeConfig, encode_episodes
from semantica.errors import DataError
from semantica.runtime import Runtime
from semantica.tracking import Run

HELD_OUT = "held_out"


class _EncodeShard:
    """One actor: the encoder, and the shards it is given."""

    def __init__(self, config: dict[str, Any], episodes: str, stage: StageOutput) -> None:
        self.config = from_dict(EncodeConfig, config)
        self.episodes, self.stage = Path(episodes), stage
        self.encoder = load_encoder(self.config.encoder, "cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        tables, stats = {}, {}
        for prefix, entry in shard["entries"].items():
            episodes = read_shard(self.episodes, FileEntry(**entry))
            encoded = encode_episodes(episodes, self.encoder, self.config)
            tables[prefix] = encoded.table
            stats[prefix] = {
                "num_episodes": encoded.table.num_rows,
                "num_images": encoded.num_images,
                "pooled_sum": encoded.pooled_sum.tolist(),
            }
        result = {"splits": stats, "encoder": self.encoder.identity.to_dict()}
        self.stage.write_shard(shard["name"], tables, result, self.config.rows_per_group)
        return {"num_images": sum(s["num_images"] for s in stats.values())}


def encode(config: EncodeConfig, *, episodes: Path, out: Path, runtime: Runtime, parent: Run | None = None) -> Manifest:
    """Encode every picture of `episodes` (training and held-out) into `out`. Returns the manifest of the encodings."""
    source = read_manifest(episodes, "episodes")
    stage = StageOutput(out.absolute(), "encodings", to_dict(config), {"episodes": source.hash})
    with stage_session("encode", stage, runtime, parent) as session:
        if session.done is not None:
            return session.done
        shards: dict[str, dict[str, Any]] = {}
        for prefix in ("", HELD_OUT):
            for entry in source.shards(prefix):
                name = Path(entry.path).stem
                shards.setdefault(name, {"name": name, "entries": {}})["entries"][prefix] = entry.__dict__
        todo = [shard for name, shard in shards.items() if not stage.has_shard(name)]
        done = sum(s["num_images"] for _, stats in stage.receipts() for s in stats["splits"].values())
        total = source.counts["num_train_images"] + source.counts["num_held_out_images"]
        arguments = (to_dict(config), str(episodes.absolute()), stage)
        results = in_actors(_EncodeShard, arguments, todo, runtime.cluster)
        with_meter(results, "encode", total - done, "pictures", lambda r: r["num_images"])
        manifest = _finish(stage, {"pictures": source.facts["pictures"]})
        session.run.metrics(manifest.counts)
        session.summary = f"{total} pictures by {manifest.facts['encoder']['name']}"
        return manifest


def _finish(stage: StageOutput, facts: dict[str, Any]) -> Manifest:
    counts = {"num_episodes": 0, "num_train_images": 0, "num_held_out_images": 0}
    pooled_sum: np.ndarray | float = 0.0
    identity = None
    for _, stats in stage.receipts():
        if identity not in (None, stats["encoder"]):
            raise DataError(
                f"encode: the shards of {stage.folder} were made by different weights under one name: the weights changed "
                "between two runs; delete the folder and run jobs.encode again"
            )
        identity = stats["encoder"]
        train, held_out = stats["splits"].get("", {}), stats["splits"].get(HELD_OUT, {})
        counts["num_episodes"] += train.get("num_episodes", 0)
        counts["num_train_images"] += train.get("num_images", 0)
        counts["num_held_out_images"] += held_out.get("num_images", 0)
        pooled_sum = pooled_sum + np.array(train.get("pooled_sum", 0.0))
    mean = np.asarray(pooled_sum) / max(1, counts["num_train_images"])
    return stage.finish(counts, {**facts, "encoder": identity, "corpus_mean": mean.tolist()})
