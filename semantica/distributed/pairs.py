"""Stage `pairs`: encodings -> scores (once) -> a selection (a view for one band), by Ray Data tasks."""

from __future__ import annotations

from typing import Any

import numpy as np

from semantica.data.dataset import FileEntry, Manifest, StageOutput, read_manifest
from semantica.data.location import Location, location, write_atomically
from semantica.distributed.session import StageSession, stage_session
from semantica.distributed.shards import in_tasks, with_meter
from semantica.errors import DataError
from semantica.pairs.examples import Reservoir, example_pngs
from semantica.pairs.scores import damage_note, finish_scores, score_shard, unscored
from semantica.pairs.selection import BandConfig, select, selection_stage, shares
from semantica.runtime import Runtime
from semantica.tracking import Run

EXAMPLES = "examples"  # folder of the pictures of pairs, beside the manifest of the selection and not in it: they depend on fonts


class _ScoreShard:
    """Scores one shard of the encodings."""

    def __init__(self, encodings: Location, stage: StageOutput) -> None:
        self.encodings, self.stage = encodings, stage
        self.mean = np.array(read_manifest(encodings, "encodings").facts["corpus_mean"], np.float32)

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        return score_shard(self.stage, self.encodings, FileEntry.from_dict(shard), self.mean)


def score(*, encodings: str | Location, out: str | Location, runtime: Runtime, parent: Run | None = None) -> Manifest:
    """Score all pairs of every episode of `encodings` into `out`. Returns the manifest of the scores."""
    encodings = location(encodings)
    source = read_manifest(encodings, "encodings")
    stage = StageOutput(location(out), "scores", {}, {"encodings": source.hash})
    with stage_session("score", stage, runtime, parent) as session:
        if session.done is not None:
            return session.done
        todo = unscored(stage, source)
        with_meter(
            in_tasks(_ScoreShard, (encodings, stage), [entry.__dict__ for entry in todo]),
            "score",
            sum(entry.num_rows for entry in todo),
            "episodes",
            lambda r: r["num_episodes"],
        )
        manifest = finish_scores(stage, runtime.max_damaged_share)
        session.run.metrics(manifest.counts)
        session.summary = f"{manifest.counts['num_pairs']} pairs of {manifest.counts['num_episodes']} episodes"
        session.notes += [note] if (note := damage_note(manifest)) else []
        return manifest


def pairs(
    band: BandConfig,
    *,
    encodings: str | Location,
    out: str | Location,
    scores: str | Location | None,
    runtime: Runtime,
    parent: Run | None = None,
) -> Manifest:
    """The selection for `band` in `out`, over `scores` (default: `scores` beside `out`), which are made when they are not there."""
    encodings, out = location(encodings), location(out)
    scores = location(scores or out.parent / "scores")
    score(encodings=encodings, out=scores, runtime=runtime, parent=parent)
    stage = selection_stage(scores, band, out)
    with stage_session("pairs", stage, runtime, parent) as session:
        if session.done is not None:
            return session.done
        reservoir = Reservoir(band, stage.inputs["scores"])
        manifest = select(stage, scores, band, reservoir)
        counts = manifest.counts
        session.run.metrics({**counts, **shares(counts)})
        _show(session, encodings, manifest, reservoir)
        session.summary = (
            f"{counts['num_pairs_kept']} of {counts['num_pairs']} pairs have {band.low} <= {band.score} <= {band.high} "
            f"({counts['num_targets']} of {counts['num_images']} pictures are targets)"
        )
        return manifest


def _show(session: StageSession, encodings: Location, selection: Manifest, reservoir: Reservoir) -> None:
    """Record the pictures in MLflow and in a folder beside the selection, which is finished and good without them."""
    try:
        pngs = example_pngs(encodings, read_manifest(encodings, "encodings"), selection, reservoir)
    except DataError as error:
        session.notes.append(f"no pictures of the pairs: {error}")
        return
    for name, png in pngs.items():
        session.run.image(png, name)
        write_atomically(session.stage.folder / EXAMPLES / f"{name}.png", png)
