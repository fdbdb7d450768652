"""What an evaluation asks for: cells, the samples of a cell by name, and the batches that samples are drawn in.

A cell gives one figure of each kind. Its kind says which pictures it is made of: samples of conditioning images, or pictures that
nobody drew, such as the conditioning images themselves. A sample's name says everything that it depends on: model, settings of the
drawing, conditioning image, index, w and seed, so that features that are kept by name are never those of another drawing. Its noise
is keyed by seed, image and index (`generation.generate.SampleNoise`), so that over w, and over models, one z is seen again.
Protocols that want the same sample want the same name: it is drawn once and counted once, whoever draws it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from jaxtyping import UInt8
from torch import Tensor

from semantica.config import to_dict
from semantica.data.pictures import PictureRef
from semantica.data.schemas import HELD_OUT
from semantica.evaluation.sets import EvaluationSet
from semantica.evaluation.settings import EvaluationConfig
from semantica.generation.settings import GenerateConfig

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
        """What keys its noise, together with the seed; the same as in semantica generate."""
        return f"{self.image_id}/{self.index}"

    @property
    def name(self) -> str:
        return f"{self.model}-{self.drawing}/{self.image_id}/{self.index}/{self.guidance:g}/{self.seed}"


@dataclass(frozen=True)
class Cell:
    """A set of pictures that gives one figure of each kind. model: the name of a checkpoint, "" where none drew; data: of a set.

    kind: a name of the registry of kinds. conditions: which set of conditioning images, from 0.
    """

    model: str
    data: str
    kind: str
    guidance: float = 0.0
    seed: int = 0
    conditions: int = 0

    @property
    def is_drawn(self) -> bool:
        """Whether a model draws its pictures."""
        return kind_of(self).is_drawn


Conditions: TypeAlias = Callable[[Cell, EvaluationSet, EvaluationConfig], list[tuple[PictureRef, int]]]


@dataclass(frozen=True)
class Kind:
    """What a cell is made of. conditions: its conditioning images, each with the index of a sample, a pure function.

    is_drawn: a model draws a sample of each. Otherwise `names` are the cell's pictures (None: the conditioning images themselves),
    which are read from the sub-folder `stored_in` of the set's encodings, or made from their names by `make`. title: of pictures
    that no model drew. of_classes: there is one conditioning image per class. has_figures: else its pictures are shown, or compared
    with each other.
    """

    conditions: Conditions
    is_drawn: bool = True
    title: str = ""
    of_classes: bool = False
    has_figures: bool = True
    stored_in: str = HELD_OUT
    make: Callable[[str, int], UInt8[Tensor, "3 h w"]] | None = None
    names: Callable[[Cell, EvaluationSet, EvaluationConfig], list[str]] | None = None


_KINDS: dict[str, Kind] = {}


def kind(name: str, **how: Any) -> Callable[[Conditions], Conditions]:
    """Register the conditioning images of cells of the kind `name`; how: the other fields of `Kind`."""

    def register(conditions: Conditions) -> Conditions:
        _KINDS[name] = Kind(conditions, **how)
        return conditions

    return register


def kind_of(cell: Cell) -> Kind:
    """What the cell is made of."""
    return _KINDS[cell.kind]


@kind("pictures")
def _pictures(cell: Cell, data: EvaluationSet, settings: EvaluationConfig) -> list[tuple[PictureRef, int]]:
    return data.conditions(settings.num, settings.seed + cell.conditions, settings.samples_per_condition)


@kind("classes", of_classes=True)
def _classes(cell: Cell, data: EvaluationSet, settings: EvaluationConfig) -> list[tuple[PictureRef, int]]:
    num = settings.own_copies.get(cell.data, settings.num_copies)
    return data.one_a_class(num, settings.seed + cell.conditions)


@kind("copy", is_drawn=False, title="Copy", of_classes=True)
def _copy(cell: Cell, data: EvaluationSet, settings: EvaluationConfig) -> list[tuple[PictureRef, int]]:
    return _classes(cell, data, settings)


@kind("grid", has_figures=False)
def _grid(cell: Cell, data: EvaluationSet, settings: EvaluationConfig) -> list[tuple[PictureRef, int]]:
    shown = data.conditions(min(settings.num_grid_rows, len(data.pictures)), settings.seed + cell.conditions)
    return [(picture, index) for picture, _ in shown for index in range(settings.num_grid_samples)]


def wanted_pictures(cell: Cell, data: EvaluationSet, settings: EvaluationConfig) -> list[tuple[str, int]]:
    """(conditioning image, sample index) of every sample of the cell, a pure function of set and settings."""
    return [(picture.image_id, index) for picture, index in kind_of(cell).conditions(cell, data, settings)]


def names_of(cell: Cell, requests: Sequence[Request], data: EvaluationSet, settings: EvaluationConfig) -> list[str]:
    """The names of the cell's pictures: of its samples, or of pictures that nobody drew."""
    if cell.is_drawn:
        return [request.name for request in requests]
    names = kind_of(cell).names
    return names(cell, data, settings) if names else [name for name, _ in wanted_pictures(cell, data, settings)]


def requests_of(cell: Cell, model_hash: str, data: EvaluationSet, settings: EvaluationConfig) -> list[Request]:
    """The samples of a cell; none where no model draws."""
    if not cell.is_drawn:
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
    if not settings.signals:  # as above
        del values["signals"]
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


def repeated(cell: Cell, settings: EvaluationConfig) -> list[Cell]:
    """The cell, then the same with each further sampling seed, then with each further set of conditioning images."""
    seeds = [replace(cell, seed=seed) for seed in range(1, settings.num_seeds)]
    return [cell, *seeds, *(replace(cell, conditions=c) for c in range(1, settings.num_condition_sets))]


def content_hash(values: Any) -> str:
    """16 hex digits that name plain data."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
