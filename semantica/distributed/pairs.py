"""Stage `pairs`: encodings -> scores (once) -> a selection, the view for one band."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from semantica.data.dataset import FileEntry, Manifest, StageOutput, read_manifest
from semantica.data.durable import write_atomically
from semantica.data.location import Location
from semantica.distributed.runtime import Runtime
from semantica.distributed.stage import Pass, Stage, StageSession, run_stage
from semantica.errors import DataError
from semantica.pairs.examples import Reservoir, example_pngs
from semantica.pairs.scores import damage_note, finish_scores, score_shard, unscored
from semantica.pairs.selection import BandConfig, count_pairs, select, selection_stage, shares
from semantica.tracking import Run

EXAMPLES = "examples"  # folder of the pictures of pairs, beside the manifest of the selection and not in it: they depend on fonts
_FEW_PICTURES = 50_000  # scored in about a second, for which no Ray is started


class _ScoreShard:
    """Scores one shard of the encodings."""

    def __init__(self, encodings: Location, mean: np.ndarray, out: StageOutput) -> None:
        self.encodings, self.mean, self.out = encodings, mean, out

    def __call__(self, shard: FileEntry) -> dict[str, Any]:
        return score_shard(self.out, self.encodings, shard, self.mean)


def score(*, encodings: Location, out: Location, runtime: Runtime, parent: Run | None = None) -> Manifest:
    """Score all pairs of every episode of `encodings` into `out`. Returns the manifest of the scores."""
    source = read_manifest(encodings, "encodings")

    def passes(session: StageSession) -> Iterator[Pass[FileEntry, dict[str, Any]]]:
        shards = unscored(session.out, source)
        yield Pass(
            worker=_ScoreShard,
            arguments=(encodings, np.array(source.facts["corpus_mean"], np.float32), session.out),
            shards=shards,
            total=sum(shard.num_rows for shard in shards),
            unit="episodes",
            size=lambda receipt: int(receipt["num_episodes"]),
            here=source.counts["num_train_images"] <= _FEW_PICTURES,
        )

    def finish(session: StageSession) -> Manifest:
        manifest = finish_scores(session.out, runtime.max_damaged_share)
        session.summary = f"{manifest.counts['num_pairs']} pairs of {manifest.counts['num_episodes']} episodes"
        session.notes += [note] if (note := damage_note(manifest)) else []
        return manifest

    output = StageOutput(out, "scores", {}, {"encodings": source.hash})
    return run_stage(Stage(name="score", out=output, passes=passes, finish=finish), runtime, parent)


def pairs(
    band: BandConfig,
    *,
    encodings: Location,
    out: Location,
    scores: Location | None,
    runtime: Runtime,
    parent: Run | None = None,
) -> Manifest:
    """The selection for `band` in `out`, over `scores` (default: the folder `scores` beside `out`), which are made when missing."""
    scores = scores or out.parent / "scores"
    score(encodings=encodings, out=scores, runtime=runtime, parent=parent)

    def finish(session: StageSession) -> Manifest:
        reservoir = Reservoir(band, session.out.inputs["scores"])
        manifest = select(session.out, scores, band, reservoir)
        counts = manifest.counts
        session.run.metrics(shares(counts))
        _show(session, encodings, manifest, reservoir)
        session.summary = (
            f"{counts['num_pairs_kept']} of {counts['num_pairs']} pairs have {band.low} <= {band.score} <= {band.high} "
            f"({counts['num_targets']} of {counts['num_images']} pictures are targets)"
        )
        return manifest

    output = selection_stage(scores, band, out)
    stage = Stage(
        name="pairs", out=output, passes=lambda session: (), finish=finish, ready=lambda session: count_pairs(scores, band)
    )
    return run_stage(stage, runtime, parent)


def _show(session: StageSession, encodings: Location, selection: Manifest, reservoir: Reservoir) -> None:
    """Record the pictures in MLflow and in a folder beside the selection, which is finished without them."""
    try:
        pngs = example_pngs(encodings, read_manifest(encodings, "encodings"), selection, reservoir)
    except DataError as error:
        session.notes.append(f"no pictures of the pairs: {error}")
        return
    for name, png in pngs.items():
        session.run.image(png, name)
        write_atomically(session.out.folder / EXAMPLES / f"{name}.png", png)
