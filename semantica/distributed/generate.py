"""Stage `generate`: checkpoint + held-out conditioning images -> samples, by actors that hold the network (Ray Data)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from semantica.data.dataset import Manifest, StageOutput, read_manifest
from semantica.data.durable import write_atomically
from semantica.data.location import Location, location
from semantica.data.pictures import PictureRef, list_pictures
from semantica.data.schemas import SAMPLES
from semantica.distributed.shards import in_actors, with_meter
from semantica.distributed.stage import StageSession, build_one, stage_session
from semantica.encoders.encoder import EncoderIdentity
from semantica.encoders.on_the_fly import tokens_on_the_fly
from semantica.errors import ConfigError, DataError
from semantica.generation.conditions import Conditions
from semantica.generation.generate import choose_conditions, png_bytes, sample_pictures
from semantica.generation.model import Model
from semantica.generation.settings import GenerateConfig
from semantica.metrics.exhibits import grids
from semantica.runtime import Runtime
from semantica.signals import SIMILARITY
from semantica.tracking import Run
from semantica.training.checkpoint import open_checkpoint


class _GenerateShard:
    """One actor: the network, and the chunks of samples it is given."""

    def __init__(self, config: GenerateConfig, checkpoint: Path, encodings: Location, stage: StageOutput) -> None:
        self.config, self.stage = config, stage
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = Model.of(open_checkpoint(checkpoint), ema=self.config.use_ema).on(self.device, self.config.speed)
        tokens_of = tokens_on_the_fly(read_manifest(encodings, "encodings"), self.device)
        self.conditions = Conditions(encodings, tokens_of)

    def __call__(self, shard: dict[str, Any]) -> dict[str, int]:
        samples = [(PictureRef(*s["condition"], *s["place"]), s["index"]) for s in shard["samples"]]
        names = [f"{picture.image_id}/{index}" for picture, index in samples]
        cond = self.conditions.read([picture for picture, _ in samples])
        if self.config.similarity is not None:
            cond = cond.told(SIMILARITY, torch.full((len(cond),), self.config.similarity))
        pictures = sample_pictures(self.model, cond, names, shard["guidance"], self.config)
        rows = [
            {
                "sample_id": f"{name}/{shard['guidance']:g}",
                "image_id": condition.image_id,
                "episode_id": condition.episode_id,
                "guidance": shard["guidance"],
                "sample_index": index,
                "bytes": png_bytes(picture),
            }
            for name, (condition, index), picture in zip(names, samples, pictures, strict=True)
        ]
        self.stage.write_shard(shard["name"], {"": pa.Table.from_pylist(rows, schema=SAMPLES)}, {"num_samples": len(rows)})
        return {"num_samples": len(rows)}


def generate(
    config: GenerateConfig,
    *,
    checkpoint: Path,
    encodings: str | Path | Location,
    out: Path,
    runtime: Runtime,
    parent: Run | None = None,
) -> Manifest:
    """Draw samples for held-out conditioning images of `encodings` into `out`. Returns the manifest of the samples."""
    encodings = location(encodings)
    source = read_manifest(encodings, "encodings")
    opened = open_checkpoint(checkpoint)
    check_same_encoder(opened.provenance.encoder["identity"], source)
    if config.similarity is not None and not opened.config.denoiser.similarity:
        raise ConfigError(
            "generate.similarity: the checkpoint's denoiser takes none; train one with train.denoiser.similarity, or leave it out"
        )
    stage = StageOutput(out.absolute(), "samples", config, {"encodings": source.hash, "checkpoint": opened.hash})
    arguments = (config, checkpoint.absolute(), encodings, stage)

    def ready(session: StageSession) -> None:
        _conditions(config, encodings)
        build_one(_GenerateShard, arguments, session)

    with stage_session("generate", stage, runtime, parent, ready=ready) as session:
        if session.done is not None:
            return session.done
        session.start_ray()
        chosen = _conditions(config, encodings)
        samples = [
            {"condition": [c.image_id, c.episode_id], "place": [c.file, c.group], "index": i}
            for i in range(config.samples_per_condition)
            for c in chosen
        ]
        size = config.batch_size
        shards: list[dict[str, Any]] = [
            {"name": f"w{index:02d}-{start // size:05d}", "guidance": w, "samples": samples[start : start + size]}
            for index, w in enumerate(config.guidance)
            for start in range(0, len(samples), size)
        ]
        todo = [s for s in shards if not stage.has_shard(s["name"])]
        results = in_actors(_GenerateShard, arguments, todo, runtime.cluster)
        total = sum(len(s["samples"]) for s in todo)
        with_meter(results, "generate", total, "samples", lambda r: r["num_samples"])
        counts = {"num_conditions": len(chosen), "num_samples": len(samples) * len(config.guidance)}
        session.run.metrics(counts)
        session.summary = f"{counts['num_samples']} samples for {len(chosen)} conditioning images"
        facts = {"conditions": [[c.image_id, c.episode_id] for c in chosen], "resolution_px": opened.config.denoiser.resolution_px}
        manifest = stage.finish(counts, facts)
        # Beside the dataset, not of it: made from it, for a person to look at first.
        preview = grids(out.absolute(), manifest, encodings, source)[0].png
        write_atomically(out.absolute() / "preview.png", preview)
        session.run.image(preview, "samples-against-guidance")
        return manifest


def _conditions(config: GenerateConfig, encodings: Location) -> list[PictureRef]:
    chosen = choose_conditions(list_pictures(encodings), config.num_conditions, config.seed)
    if not chosen:
        raise DataError(f"generate: {encodings} holds no held-out pictures; ingest with held_out_share above 0")
    return chosen


def check_same_encoder(trained_with: dict[str, Any], encodings: Manifest) -> None:
    """Raise DataError unless the encodings were made by the encoder that the checkpoint was trained with."""
    found = encodings.facts["encoder"]
    for field in EncoderIdentity.from_dict(trained_with).differing(EncoderIdentity.from_dict(found)):
        raise DataError(
            f"generate: the checkpoint was trained with {trained_with['name']} ({field} {trained_with[field]}), but the encodings "
            f"were made by {found['name']} ({field} {found[field]}); encode the pictures with the checkpoint's encoder"
        )
