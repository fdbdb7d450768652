"""Requests: the samples that an evaluation wants, by name, and the batches that they are drawn in.

A sample's name says everything that it depends on: model, settings of the drawing, conditioning image, index, w and seed, so that
features that are kept by name are never those of another drawing. Its noise is keyed by seed, image and index
(`generation.generate.SampleNoise`), so that over w, and over models, one z is seen again. Protocols that want the same sample want
the same name: it is drawn once and counted once, whoever draws it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from semantica.config import to_dict
from semantica.evaluation.sets import EvaluationSet
from semantica.evaluation.settings import EvaluationConfig
from semantica.generation.settings import GenerateConfig

Kind = Literal["pictures", "classes", "copy", "grid"]
_BY_SAMPLE = ("guidance", "num_conditions", "samples_per_condition", "seed")  # of GenerateConfig: a sample's name says its own


@dataclass(frozen=True)
class Request:
    """One sample: the hashes of its model and of the settings of its drawing, its conditioning image, which of the image's samples
    it is, w, and the sampling seed.
    """

    model: str
    drawing: str
    image_id: str
    index: int
    guidance: float
    seed: int

    @property
    def noise_name(self) -> str:
        """What keys its noise, together with the seed; the same as in jobs.generate."""
        return f"{self.image_id}/{self.index}"

    @property
    def name(self) -> str:
        return f"{self.model}-{self.drawing}/{self.image_id}/{self.index}/{self.guidance:g}/{self.seed}"


@dataclass(frozen=True)
class Cell:
    """A set of samples that gives one figure of each kind. model: a name of a checkpoint; data: of an evaluation set.

    kind: samples of `num` conditioning images, of one image a class, for a grid; or Copy, which repeats the one image a class.
    conditions: which set of conditioning images, from 0.
    """

    model: str
    data: str
    kind: Kind
    guidance: float = 0.0
    seed: int = 0
    conditions: int = 0


def wanted_pictures(cell: Cell, data: EvaluationSet, settings: EvaluationConfig) -> list[tuple[str, int]]:
    """(conditioning image, sample index) of every sample of the cell, a pure function of set and settings."""
    seed = settings.seed + cell.conditions
    if cell.kind == "pictures":
        chosen = data.conditions(settings.num, seed)
    elif cell.kind == "grid":
        shown = data.conditions(min(settings.num_grid_rows, len(data.pictures)), seed)
        chosen = [(picture, index) for picture, _ in shown for index in range(settings.num_grid_samples)]
    else:
        chosen = data.one_a_class(settings.own_copies.get(cell.data, settings.num_copies), seed)
    return [(picture.image_id, index) for picture, index in chosen]


def requests_of(cell: Cell, model_hash: str, data: EvaluationSet, settings: EvaluationConfig) -> list[Request]:
    """The samples of a cell; Copy draws none."""
    if cell.kind == "copy":
        return []
    seed = settings.seed + cell.seed
    wanted = wanted_pictures(cell, data, settings)
    drawing = content_hash(drawing_of(settings.draws()))[:8]
    return [Request(model_hash, drawing, image_id, index, cell.guidance, seed) for image_id, index in wanted]


def drawing_of(settings: GenerateConfig) -> dict[str, Any]:
    """The settings that all samples of one folder share, as plain values."""
    values = {name: value for name, value in to_dict(settings).items() if name not in _BY_SAMPLE}
    if not settings.beyond.weights:  # samples were named before there were any, and keep their names
        del values["beyond"]["weights"]
    return values


@dataclass(frozen=True)
class Batch:
    """Samples of one w and seed that are drawn together; its name is that of its content."""

    guidance: float
    seed: int
    requests: tuple[Request, ...]

    @property
    def name(self) -> str:
        digest = hashlib.sha256("\n".join(request.name for request in self.requests).encode()).hexdigest()[:16]
        return f"w{self.guidance:g}-s{self.seed}-{digest}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data that travels to a worker."""
        wanted = [[r.model, r.drawing, r.image_id, r.index] for r in self.requests]
        return {"name": self.name, "guidance": self.guidance, "seed": self.seed, "requests": wanted}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Batch:
        """The batch that `to_dict` gave."""
        w, seed = values["guidance"], values["seed"]
        requests = tuple(Request(model, how, image_id, index, w, seed) for model, how, image_id, index in values["requests"])
        return cls(w, seed, requests)


def batches(requests: Iterable[Request], size: int, drawn: Collection[str] = ()) -> Iterator[Batch]:
    """The requests, each once, in batches of one w and seed, without those that are `drawn`.

    Where the cuts lie does not depend on what is drawn: an evaluation that goes on draws the batches that the uninterrupted one
    would have drawn.
    """
    groups: dict[tuple[float, int], list[Request]] = {}
    for request in dict.fromkeys(requests):
        groups.setdefault((request.guidance, request.seed), []).append(request)
    for (guidance, seed), members in groups.items():
        for start in range(0, len(members), size):
            left = [r for r in members[start : start + size] if r.name not in drawn]
            if left:
                yield Batch(guidance, seed, tuple(left))


def cells_of(
    settings: EvaluationConfig, models: Sequence[str], last: Sequence[str], data: Sequence[str], passed_over: Collection[str] = ()
) -> list[Cell]:
    """Every cell that the protocols ask for, each once, in a fixed order. last: of each run the last model; training is of all.

    passed_over: sets of which one-shot is not made.
    """
    found: dict[Cell, None] = {}
    for protocol in settings.protocol:
        for model in models if protocol == "training" else last:
            for name in (n for n in data if protocol != "one-shot" or n not in passed_over):
                found.update(dict.fromkeys(_cells(protocol, Cell(model, name, "pictures"), settings)))
    return list(found)


def without_classes(settings: EvaluationConfig, data: Iterable[EvaluationSet]) -> list[str]:
    """The names of sets of one label, where one-shot is asked for and other sets have classes (ImageNet beside LSUN's)."""
    several = {one.name: len(one.labels) > 1 for one in data}
    return [name for name in several if not several[name]] if "one-shot" in settings.protocol and any(several.values()) else []


def _cells(protocol: str, base: Cell, settings: EvaluationConfig) -> Iterator[Cell]:
    if protocol == "curve":
        for w in settings.guidance:
            yield from repeated(replace(base, guidance=w), settings)
    elif protocol == "training":
        yield from repeated(replace(base, guidance=settings.training_guidance), settings)
    elif protocol == "grouping":
        for w in settings.table_guidance:
            yield from repeated(replace(base, guidance=w), settings)
    elif protocol == "details":
        yield replace(base, guidance=settings.details_guidance)
        yield replace(base, kind="grid", guidance=settings.details_guidance)
    elif protocol == "one-shot":
        yield Cell("", base.data, "copy")
        for w in settings.table_guidance:
            yield from repeated(replace(base, kind="classes", guidance=w), settings)
    else:  # grids: rows of w from one z, and several samples of one image
        for w in settings.guidance:
            yield replace(base, kind="grid", guidance=w)


def repeated(cell: Cell, settings: EvaluationConfig) -> list[Cell]:
    """The cell, then the same with each further sampling seed, then with each further set of conditioning images."""
    seeds = [replace(cell, seed=seed) for seed in range(1, settings.num_seeds)]
    return [cell, *seeds, *(replace(cell, conditions=c) for c in range(1, settings.num_condition_sets))]


def content_hash(values: Any) -> str:
    """16 hex digits that name plain data."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
