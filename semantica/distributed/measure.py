"""Measure pictures and samples by the networks of an evaluation, in a pool of actors that hold them (Ray Data).

Comes in: names with where their pixels lie. Goes out: a growing dataset of features, a sub-folder for each network, keyed by name.
Its receipts say what they hold, so that a network that is added later measures everything and the others nothing again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from semantica.config import from_dict
from semantica.data.dataset import FileEntry, StageOutput, read_manifest, read_shard
from semantica.data.location import Location, location
from semantica.data.pictures import PictureRef, StoredPictures, decode
from semantica.data.schemas import HELD_OUT
from semantica.distributed.shards import in_actors, with_meter
from semantica.distributed.stage import stage_session
from semantica.encoders.encoder import EncoderIdentity, load_encoder
from semantica.encoders.settings import EncoderConfig
from semantica.errors import DataError
from semantica.evaluation.measuring import Measured, distance_rows, feature_rows
from semantica.evaluation.networks import ENCODER, Networks
from semantica.evaluation.requests import content_hash
from semantica.evaluation.sets import EvaluationSet
from semantica.measure.networks.extractors import (
    FeatureExtractor,
    PerceptualNet,
    encoder_features,
    load_features,
    load_perceptual,
)
from semantica.runtime import Runtime
from semantica.tracking import Run

_PICTURES_A_SHARD = 128


@dataclass(frozen=True)
class Work:
    """Pictures that are measured together: "pictures" (of the encodings' sub-folder `prefix`) or "samples" (of a drawn folder).

    names: what is measured; places: where pictures, or the conditioning images of samples, lie in the encodings.
    """

    kind: str
    names: tuple[str, ...]
    encodings: str
    prefix: str = HELD_OUT
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    folder: str = ""
    entry: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that travels to a worker."""
        return {**self.__dict__, "places": {name: list(place) for name, place in self.places.items()}}


def picture_work(encodings: Location, places: Mapping[str, PictureRef], prefix: str = HELD_OUT) -> list[Work]:
    """Work that measures these pictures of an encodings dataset, cut in the order in which they lie."""
    names = sorted(places, key=lambda name: (places[name].file, places[name].group, name))
    found = []
    for start in range(0, len(names), _PICTURES_A_SHARD):
        some = tuple(names[start : start + _PICTURES_A_SHARD])
        lie = {name: (places[name].file, places[name].group) for name in some}
        found.append(Work("pictures", some, str(encodings), prefix, lie))
    return found


def sample_work(drawn: Location, data: EvaluationSet, wanted: Mapping[str, str]) -> list[Work]:
    """Work that measures those samples of a finished drawn folder that are `wanted` (name -> conditioning image), a file each."""
    manifest = read_manifest(drawn, "drawn")
    stage = StageOutput.of(drawn, manifest)
    entries = {Path(entry.path).stem: entry for entry in manifest.shards()}
    found = []
    for stem, stats in stage.receipts():
        names = tuple(name for name in stats["names"] if name in wanted)
        if names:
            places = {wanted[name]: data.pictures[wanted[name]] for name in names}
            lie = {image_id: (place.file, place.group) for image_id, place in places.items()}
            entry = entries[stem].__dict__
            found.append(Work("samples", names, str(data.encodings), places=lie, folder=str(drawn), entry=entry))
    return found


class _MeasureShard:
    """One actor: the networks, loaded when they are first needed, and the shards it is given."""

    def __init__(self, networks: Networks, resolution_px: int, batch_size: int, stage: StageOutput) -> None:
        self.networks, self.side, self.batch_size, self.stage = networks, resolution_px, batch_size, stage
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._loaded: dict[str, FeatureExtractor | PerceptualNet] = {}
        self._stored: dict[tuple[str, str], StoredPictures] = {}

    def __call__(self, shard: dict[str, Any]) -> dict[str, int]:
        work = shard["work"]
        pictures = self._samples(work) if work["kind"] == "samples" else self._pictures(work)
        tables = {}
        for name in shard["networks"]:
            network = self._network(name)
            measure = feature_rows if isinstance(network, FeatureExtractor) else distance_rows
            tables[self.networks.columns[name]] = measure(network, pictures)  # type: ignore[arg-type]
        held = {"columns": list(tables), "names": list(work["names"])}
        self.stage.write_shard(shard["name"], tables, held)
        return {"num_pictures": len(pictures)}

    def _pictures(self, work: dict[str, Any]) -> list[Measured]:
        stored = self._read(work, work["names"])
        return [Measured(name, decode(stored[name], self.side)) for name in work["names"]]

    def _samples(self, work: dict[str, Any]) -> list[Measured]:
        rows = read_shard(location(work["folder"]), FileEntry.from_dict(work["entry"])).to_pylist()
        by_name = {row["sample_id"]: row for row in rows}
        stored = self._read(work, work["places"])
        conditions = {name: decode(data, self.side) for name, data in stored.items()}
        wanted = [by_name[name] for name in work["names"]]
        return [Measured(r["sample_id"], decode(r["bytes"], self.side), conditions[r["image_id"]]) for r in wanted]

    def _read(self, work: dict[str, Any], names: Iterable[str]) -> dict[str, bytes]:
        key = (work["encodings"], work["prefix"])
        if key not in self._stored:
            self._stored[key] = StoredPictures(location(key[0]), key[1])
        return self._stored[key].read(PictureRef(name, "", *work["places"][name]) for name in names)

    def _network(self, name: str) -> FeatureExtractor | PerceptualNet:
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> FeatureExtractor | PerceptualNet:
        if name in self.networks.perceptual:
            return load_perceptual(self.networks.found[name], self.device, self.batch_size)
        if name != ENCODER:
            return load_features(self.networks.found[name], self.device, self.batch_size)
        encoder = load_encoder(from_dict(EncoderConfig, dict(self.networks.encoder)), self.device)
        expected = EncoderIdentity.from_dict(dict(self.networks.encoder_identity))
        if expected.differing(encoder.identity):
            raise DataError(f"evaluate: the weights of {expected.name} are no longer those that made the encodings; encode again")
        return encoder_features(encoder, self.batch_size)


def measure(
    work: Sequence[Work],
    networks: Networks,
    *,
    inputs: Mapping[str, str],
    resolution_px: int,
    batch_size: int,
    out: Location,
    runtime: Runtime,
    parent: Run | None,
) -> None:
    """Measure by every network what `out` does not hold yet: pictures by the extractors, samples by the perceptual nets too."""
    stage = StageOutput(out, "features", {"resolution_px": resolution_px, "batch_size": batch_size}, inputs)
    held: dict[str, set[str]] = defaultdict(set)
    for _, stats in stage.receipts():
        for column in stats["columns"]:
            held[column].update(stats["names"])
    todo = [shard for one in work for shard in _shards(one, networks, held)]
    if todo:
        stage.reopen()
    with stage_session("measure", stage, runtime, parent) as session:
        if session.done is not None:
            return
        session.start_ray()
        arguments = (networks, resolution_px, batch_size, stage)
        results = in_actors(_MeasureShard, arguments, todo, runtime.cluster)
        total = sum(len(shard["work"]["names"]) for shard in todo)
        with_meter(results, "measure", total, "pictures", lambda r: r["num_pictures"])
        names = {name for _, stats in stage.receipts() for name in stats["names"]}
        session.run.metrics({"num_pictures": len(names)})
        session.summary = f"{total} pictures by {', '.join(networks.columns)}"
        stage.finish({"num_pictures": len(names)}, {"columns": networks.columns})


def _shards(work: Work, networks: Networks, held: Mapping[str, set[str]]) -> list[dict[str, Any]]:
    """A shard for each set of names that the same networks still have to measure."""
    wanted = [name for name in networks.columns if work.kind == "samples" or name not in networks.perceptual]
    missing: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in wanted:
        left = tuple(n for n in work.names if n not in held.get(networks.columns[name], ()))
        if left:
            missing[left].append(name)
    found = []
    for names, by in missing.items():
        plain = {**work.to_dict(), "names": list(names)}
        called = f"{work.kind}-{content_hash([list(names), [networks.columns[name] for name in by]])}"
        found.append({"name": called, "networks": by, "work": plain})
    return found
