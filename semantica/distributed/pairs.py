"""Stage `pairs`: encodings -> scores (once) -> a selection (a view for one band), by Ray Data tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from semantica.datasets import FileEntry, Manifest, StageOutput, read_manifest, read_shard
from semantica.distributed.session import stage_session
from semantica.distributed.shards import in_tasks, with_meter
from semantica.pairs.scores import score_table
from semantica.pairs.selection import BandConfig, select, selection_stage
from semantica.runtime import Runtime
from semantica.tracking import Run


class _ScoreShard:
    """Scores one shard of the encodings."""

    def __init__(self, encodings: Path, stage: StageOutput) -> None:
        self.encodings, self.stage = encodings, stage
        manifest = read_manifest(encodings, "encodings")
        self.mean = np.array(manifest.facts["corpus_mean"], np.float32)
        self.rows_per_group = manifest.config["rows_per_group"]  # the same row groups: the loader finds both by one index

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        entry = FileEntry(**shard)
        table = score_table(read_shard(self.encodings, entry, ["episode_id", "pooled"]), self.mean)
        stats = {"num_episodes": table.num_rows}
        self.stage.write_shard(Path(entry.path).stem, {"": table}, stats, self.rows_per_group)
        return stats


def score(*, encodings: Path, out: Path, runtime: Runtime, parent: Run | None = None) -> Manifest:
    """Score all pairs of every episode of `encodings` into `out`. Returns the manifest of the scores."""
    source = read_manifest(encodings, "encodings")
    stage = StageOutput(out.absolute(), "scores", {}, {"encodings": source.hash})
    with stage_session("score", stage, runtime, parent) as session:
        if session.done is not None:
            return session.done
        todo = [e.__dict__ for e in source.shards() if not stage.has_shard(Path(e.path).stem)]
        total = source.counts["num_episodes"]
        with_meter(
            in_tasks(_ScoreShard, (encodings.absolute(), stage), todo),
            "score",
            sum(sum(e["row_group_rows"]) for e in todo),
            "episodes",
            lambda r: r["num_episodes"],
        )
        session.summary = f"pairs of {total} episodes"
        return stage.finish({"num_episodes": total}, {})


def pairs(
    band: BandConfig, *, encodings: Path, out: Path, scores: Path | None, runtime: Runtime, parent: Run | None = None
) -> Manifest:
    """The selection for `band` in `out`, over `scores` (default: `scores` beside `out`), which are made when they are not there."""
    scores = scores or out.absolute().parent / "scores"
    score(encodings=encodings, out=scores, runtime=runtime, parent=parent)
    stage = selection_stage(scores, band, out.absolute())
    with stage_session("pairs", stage, runtime, parent) as session:
        if session.done is not None:
            return session.done
        manifest = select(stage, scores, band)
        counts = manifest.counts
        session.run.metrics(counts)
        session.summary = (
            f"{counts['num_pairs_kept']} of {counts['num_pairs']} pairs have {band.low} <= {band.score} <= {band.high} "
            f"({counts['num_targets']} of {counts['num_images']} pictures are targets)"
        )
        return manifest
