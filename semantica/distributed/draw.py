"""Draw the samples that protocols ask for, by a pool of actors that each hold the network (Ray Data).

The folder of a model's samples grows: asked for more, a finished one draws what is missing and is finished again. Its receipts name
the samples they hold, so none is drawn twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from semantica.config import from_dict, to_dict
from semantica.data.dataset import Manifest, StageOutput, read_manifest
from semantica.data.location import Location, location
from semantica.data.pictures import PictureRef
from semantica.distributed.shards import in_actors, with_meter
from semantica.distributed.stage import stage_session
from semantica.encoders.on_the_fly import tokens_on_the_fly
from semantica.evaluation.drawing import draw, sample_rows
from semantica.evaluation.models import EvaluatedModel
from semantica.evaluation.requests import Batch, Request, batches, drawing_of
from semantica.evaluation.sets import EvaluationSet
from semantica.generation.conditions import Conditions
from semantica.generation.model import Model
from semantica.generation.settings import GenerateConfig
from semantica.runtime import Runtime
from semantica.tracking import Run
from semantica.training.checkpoint import open_checkpoint


class _DrawBatch:
    """One actor: the network, and the batches it is given."""

    def __init__(self, settings: dict[str, Any], checkpoint: str, encodings: str, stage: StageOutput, encoder: str = "") -> None:
        self.settings, self.stage = from_dict(GenerateConfig, settings), stage
        device = "cuda" if torch.cuda.is_available() else "cpu"
        opened = open_checkpoint(Path(checkpoint))
        self.model = Model.of(opened, ema=self.settings.use_ema).on(device, self.settings.speed)
        where = location(encodings)
        self.conditions = Conditions(where, tokens_on_the_fly(read_manifest(where, "encodings"), device, encoder))

    def __call__(self, shard: dict[str, Any]) -> dict[str, int]:
        batch = Batch.from_dict(shard["batch"])
        wanted = [PictureRef(r.image_id, episode, *place) for r, (episode, place) in zip(batch.requests, shard["lie"], strict=True)]
        pictures = draw(self.model, self.conditions.read(wanted), batch, self.settings)
        episodes = {picture.image_id: picture.episode_id for picture in wanted}
        names = [request.name for request in batch.requests]
        self.stage.write_shard(batch.name, {"": sample_rows(batch, episodes, pictures)}, {"names": names})
        return {"num_samples": len(names)}


def draw_samples(
    requests: Sequence[Request],
    *,
    model: EvaluatedModel,
    data: EvaluationSet,
    settings: GenerateConfig,
    encoder: str,
    out: Location,
    runtime: Runtime,
    parent: Run | None,
) -> Manifest:
    """Draw what `out` does not hold yet. Returns the manifest of its samples, which are those of earlier requests too.

    encoder: a folder of the encoder's weights, "" where the encodings' own lie.
    """
    inputs = {"encodings": data.hash, "checkpoint": model.checkpoint.hash}
    stage = StageOutput(out, "drawn", drawing_of(settings), inputs)
    drawn = {name for _, stats in stage.receipts() for name in stats["names"]}
    todo = list(batches(requests, settings.batch_size, drawn))
    if todo:
        stage.reopen()
    with stage_session("draw", stage, runtime, parent) as session:
        if session.done is not None:
            return session.done
        session.start_ray()
        shards = [{"batch": batch.to_dict(), "lie": [_lies(data, request) for request in batch.requests]} for batch in todo]
        arguments = (to_dict(settings), str(model.checkpoint.folder), str(data.encodings), stage, encoder)
        results = in_actors(_DrawBatch, arguments, shards, runtime.cluster)
        total = sum(len(batch.requests) for batch in todo)
        with_meter(results, "draw", total, "samples", lambda r: r["num_samples"])
        num = sum(len(stats["names"]) for _, stats in stage.receipts())
        session.run.metrics({"num_samples": num})
        session.summary = f"{total} samples of {model.name} for pictures of {data.name}"
        return stage.finish({"num_samples": num}, {"resolution_px": model.checkpoint.config.denoiser.resolution_px})


def _lies(data: EvaluationSet, request: Request) -> list[Any]:
    picture = data.pictures[request.image_id]
    return [picture.episode_id, [picture.file, picture.group]]
