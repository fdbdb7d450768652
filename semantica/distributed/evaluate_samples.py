"""The demo's evaluation: samples of jobs.generate + encodings -> figures and the report, by actors that hold the networks.

Beside what the protocols of `evaluate` measure, it compares training pictures and noise with held-out pictures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from semantica.config import from_dict, to_dict
from semantica.data.dataset import FileEntry, Manifest, StageOutput, read_manifest, read_shard
from semantica.data.durable import write_atomically
from semantica.data.location import Location, Where, location
from semantica.data.pictures import decode
from semantica.data.schemas import HELD_OUT
from semantica.distributed.shards import in_actors, with_meter
from semantica.distributed.stage import stage_session
from semantica.encoders.encoder import load_encoder
from semantica.encoders.settings import EncoderConfig
from semantica.errors import DataError
from semantica.metrics.evaluate import compute_figures, noise_picture
from semantica.metrics.feature_rows import Extractors, MetricWeights, Picture, find_weights
from semantica.metrics.settings import EvaluateConfig
from semantica.metrics.summary import NO_SOURCES, Sources, build_report
from semantica.pairs.draw import generator
from semantica.report.page import render, to_json
from semantica.runtime import Runtime
from semantica.tracking import Run
from semantica.training.checkpoint import Checkpoint, open_checkpoint


class _FeatureShard:
    """One actor: the extractors, the conditioning images, and the shards of pictures it is given."""

    def __init__(self, job: dict[str, Any], stage: StageOutput) -> None:
        self.job, self.stage = job, stage
        config = from_dict(EvaluateConfig, job["config"])
        self.encodings, self.samples = location(job["encodings"]), Path(job["samples"])
        encoder = load_encoder(from_dict(EncoderConfig, job["encoder"]), "cuda" if torch.cuda.is_available() else "cpu")
        if encoder.identity.to_dict() != job["identity"]:
            raise DataError(
                f"evaluate: the weights of {job['identity']['name']} are no longer those that made the encodings; encode again"
            )
        self.extractors = Extractors(encoder, MetricWeights(**job["weights"]), config.batch_size)
        self.config = config
        self.conditions = {p.name: p.pixels for p in self._stored(HELD_OUT, set(job["conditions"]))}

    def __call__(self, shard: dict[str, Any]) -> dict[str, int]:
        pictures: list[Picture] = getattr(self, f"_{shard['set']}")(shard)
        # The slowest extractor: for the samples of one w, and what they are compared with.
        with_inception = shard["set"] in ("reference", "conditions") or any(
            p.guidance is not None and math.isclose(p.guidance, self.config.guidance, rel_tol=1e-6) for p in pictures
        )
        table = self.extractors.features(shard["set"], pictures, with_inception=with_inception)
        self.stage.write_shard(shard["name"], {"": table}, {"num_pictures": len(pictures)})
        return {"num_pictures": len(pictures)}

    def _reference(self, shard: dict[str, Any]) -> list[Picture]:
        return self._of_entry(shard["entry"], lambda name: name not in self.conditions)

    def _conditions(self, shard: dict[str, Any]) -> list[Picture]:
        return [Picture(name, self.conditions[name]) for name in shard["names"]]

    def _train(self, shard: dict[str, Any]) -> list[Picture]:
        return self._of_entry(shard["entry"], set(shard["names"]).__contains__)

    def _noise(self, shard: dict[str, Any]) -> list[Picture]:
        indices = range(shard["start"], shard["stop"])
        return [Picture(str(i), noise_picture(self.config.seed, i, self.job["resolution_px"])) for i in indices]

    def _samples(self, shard: dict[str, Any]) -> list[Picture]:
        rows = read_shard(self.samples, FileEntry.from_dict(shard["entry"])).to_pylist()
        side = self.job["resolution_px"]
        return [
            Picture(r["sample_id"], decode(r["bytes"], side), r["image_id"], self.conditions[r["image_id"]], r["guidance"])
            for r in rows
        ]

    def _stored(self, prefix: str, wanted: set[str]) -> list[Picture]:
        manifest = read_manifest(self.encodings, "encodings")
        return [p for entry in manifest.shards(prefix) for p in self._of_entry(entry.__dict__, wanted.__contains__)]

    def _of_entry(self, entry: dict[str, Any], wanted: Callable[[str], bool]) -> list[Picture]:
        column = read_shard(self.encodings, FileEntry.from_dict(entry), ["images"])["images"].to_pylist()
        images = {image["image_id"]: image["bytes"] for row in column for image in row if wanted(image["image_id"])}
        return [Picture(name, decode(data, self.job["resolution_px"])) for name, data in images.items()]


def evaluate_samples(
    config: EvaluateConfig,
    *,
    samples: Path,
    checkpoint: Path,
    encodings: Where,
    out: Path,
    runtime: Runtime,
    parent: Run | None = None,
    sources: Sources = NO_SOURCES,
) -> Manifest:
    """Measure `samples` against held-out pictures of `encodings`, and write features, report.html and report.json to `out`."""
    encodings = location(encodings)
    drawn, source = read_manifest(samples, "samples"), read_manifest(encodings, "encodings")
    opened = open_checkpoint(checkpoint)
    _check_belong_together(drawn, source, opened)
    weights, notes = find_weights(inception=config.inception, perceptual=config.perceptual)
    inputs = {"samples": drawn.hash, "encodings": source.hash}
    found = {"inception_found": bool(weights.inception), "perceptual_name": weights.perceptual_name}
    stage = StageOutput(out.absolute(), "evaluation", config, inputs, further=found)
    with stage_session("evaluate", stage, runtime, parent) as session:
        if session.done is not None:
            return session.done
        session.start_ray()
        job = {
            "config": to_dict(config),
            "encodings": str(encodings),
            "samples": str(samples.absolute()),
            "encoder": source.config["encoder"],
            "identity": source.facts["encoder"],
            "weights": asdict(weights),
            "conditions": [image_id for image_id, _ in drawn.facts["conditions"]],
            "resolution_px": drawn.facts["resolution_px"],
        }
        todo = [s for s in _shards(config, drawn, source, encodings) if not stage.has_shard(s["name"])]
        results = in_actors(_FeatureShard, (job, stage), todo, runtime.cluster)
        with_meter(results, "evaluate", sum(s["count"] for s in todo), "pictures", lambda r: r["num_pictures"])
        tables = [pq.read_table(stage.folder / f"{name}.parquet") for name, _ in stage.receipts()]
        mean = np.array(opened.provenance.corpus_mean) if config.centred else None
        figures = compute_figures(pa.concat_tables(tables), mean)
        report = build_report(
            figures,
            config,
            checkpoint=opened,
            samples=samples,
            encodings=encodings,
            sources=sources,
            notes=notes,
            perceptual_net=weights.perceptual_net,
        )
        write_atomically(stage.folder / "report.json", json.dumps(to_json(report), indent=1).encode())
        write_atomically(stage.folder / "report.html", render(report).encode())
        counts = {"num_pictures": sum(s["num_pictures"] for _, s in stage.receipts())}
        manifest = stage.finish(counts, {}, ["report.html", "report.json"])
        for name in ("report.html", "report.json"):
            session.run.artifact(out.absolute() / name)
        for grid in report.grids:
            session.run.image(grid.png, grid.title.lower().replace(" ", "-"))
        session.run.metrics({f.name: f.value for f in report.figures if isinstance(f.value, (int, float))})
        session.notes = list(report.summary)
        session.summary = f"{counts['num_pictures']} pictures measured"
        return manifest


def _check_belong_together(drawn: Manifest, source: Manifest, checkpoint: Checkpoint) -> None:
    """Raise DataError unless the samples were drawn by this checkpoint for pictures of these encodings."""
    for name, given in (("checkpoint", checkpoint.hash), ("encodings", source.hash)):
        if drawn.inputs[name] != given:
            raise DataError(
                f"evaluate: the samples were drawn from another {name} ({drawn.inputs[name][:12]}) than the one given "
                f"({given[:12]}); give the {name} that jobs.generate was given"
            )


def _shards(config: EvaluateConfig, drawn: Manifest, source: Manifest, encodings: Location) -> list[dict[str, Any]]:
    """What is to be measured, cut where the datasets are cut."""
    conditions = [image_id for image_id, _ in drawn.facts["conditions"]]
    per_guidance = drawn.counts["num_samples"] // len(drawn.config["guidance"])
    shards: list[dict[str, Any]] = []
    for entry in drawn.shards():
        name = f"samples-{Path(entry.path).stem}"
        shards.append({"set": "samples", "name": name, "entry": entry.__dict__, "count": entry.num_rows})
    for entry in source.shards(HELD_OUT):
        ids = set(_image_ids(encodings, entry)) - set(conditions)
        if ids:
            shards.append(
                {"set": "reference", "name": f"reference-{Path(entry.path).stem}", "entry": entry.__dict__, "count": len(ids)}
            )
    shards.append({"set": "conditions", "name": "conditions", "names": conditions, "count": len(conditions)})
    by_entry = {entry: _image_ids(encodings, entry) for entry in source.shards()}
    everything = sorted({image_id for ids in by_entry.values() for image_id in ids})
    chosen = set(generator(config.seed, "train pictures").permutation(everything)[:per_guidance].tolist())
    for entry, in_entry in by_entry.items():
        names = sorted(chosen.intersection(in_entry))
        chosen.difference_update(names)  # a picture on two pages is measured once
        if names:
            name = f"train-{Path(entry.path).stem}"
            shards.append({"set": "train", "name": name, "entry": entry.__dict__, "names": names, "count": len(names)})
    for start in range(0, per_guidance, config.batch_size):
        stop = min(start + config.batch_size, per_guidance)
        shards.append({"set": "noise", "name": f"noise-{start:06d}", "start": start, "stop": stop, "count": stop - start})
    return shards


def _image_ids(encodings: Location, entry: FileEntry) -> list[str]:
    column = read_shard(encodings, entry, ["images.list.element.image_id"])["images"].to_pylist()
    return [image["image_id"] for row in column for image in row]
