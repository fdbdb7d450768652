"""What is measured, and by which networks: cells -> work, and the pictures of one piece of work -> rows keyed by name.

A piece of work says where the pixels of its names lie: in encodings, in a folder of samples, or nowhere, because they are made.
Each name is measured by the networks that some cell asks for. Nothing here depends on how many workers share the work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import UInt8
from torch import Tensor

from semantica.data.dataset import FileEntry, read_shard
from semantica.data.location import Location
from semantica.data.pictures import PictureRef, StoredPictures, decode, list_pictures
from semantica.data.schemas import DISTANCES, FEATURES, HELD_OUT
from semantica.errors import DataError
from semantica.evaluation.figures import Measurer
from semantica.evaluation.requests import Cell, Request, content_hash, kind_of, names_of, wanted_pictures
from semantica.evaluation.samples import SampleFolder
from semantica.evaluation.sets import EvaluationSet, by_image
from semantica.measure.networks.extractors import FeatureExtractor, PerceptualNet

K = TypeVar("K")

_PICTURES_PER_SHARD = 128
Pictures: TypeAlias = Callable[[Location, str], StoredPictures]  # (encodings, sub-folder) -> its reader


@dataclass(frozen=True)
class Measured:
    """A picture to measure: its name, its pixels, and for a sample those of its conditioning image."""

    name: str
    pixels: UInt8[Tensor, "3 h w"]
    condition: UInt8[Tensor, "3 h w"] | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """Pictures that are measured together. by: the networks that measure all of them."""

    names: tuple[str, ...]
    by: tuple[str, ...]
    what = ""

    def pictures(self, side: int, stored: Pictures) -> list[Measured]:
        """The pixels, at `side` px."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class StoredWork(Work):
    """Pictures of the sub-folder `prefix` of encodings, with the place of each."""

    encodings: Location
    prefix: str
    places: Mapping[str, PictureRef]
    what = "pictures"

    def pictures(self, side: int, stored: Pictures) -> list[Measured]:
        data = stored(self.encodings, self.prefix).read([self.places[name] for name in self.names])
        return [Measured(name, decode(data[name], side)) for name in self.names]


@dataclass(frozen=True, kw_only=True)
class SampleWork(Work):
    """Samples of one file. ids, conditions: of each name its id in that file, and its conditioning image, whose place is known."""

    folder: Location
    entry: FileEntry
    ids: Mapping[str, str]
    conditions: Mapping[str, str]
    encodings: Location
    places: Mapping[str, PictureRef]
    what = "samples"

    def pictures(self, side: int, stored: Pictures) -> list[Measured]:
        rows = {row["sample_id"]: row["bytes"] for row in read_shard(self.folder, self.entry, ["sample_id", "bytes"]).to_pylist()}
        images = dict.fromkeys(self.conditions[name] for name in self.names)
        data = stored(self.encodings, HELD_OUT).read([self.places[image] for image in images])
        conditions = {image: decode(value, side) for image, value in data.items()}
        return [Measured(n, decode(rows[self.ids[n]], side), conditions[self.conditions[n]]) for n in self.names]


@dataclass(frozen=True, kw_only=True)
class MadeWork(Work):
    """Pictures that are computed from their names."""

    make: Callable[[str, int], UInt8[Tensor, "3 h w"]]
    what = "made"

    def pictures(self, side: int, stored: Pictures) -> list[Measured]:
        return [Measured(name, self.make(name, side)) for name in self.names]


def work_of(
    data: EvaluationSet,
    cells: Mapping[Cell, Sequence[str]],
    requests: Mapping[Cell, Sequence[Request]],
    samples: Mapping[tuple[str, str], SampleFolder],
    measurer: Measurer,
) -> list[Work]:
    """All that must be measured for the cells of one set. cells: the networks of each. samples: where those of (model, set) lie.

    A reference is measured by the networks of the cells that are compared with it, and so are conditioning images.
    """
    settings = measurer.settings
    stored: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # sub-folder -> name -> networks
    drawn: dict[SampleFolder, dict[Request, set[str]]] = defaultdict(lambda: defaultdict(set))  # a checkpoint may have two names
    made: dict[Callable[[str, int], Tensor], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for cell, networks in cells.items():
        if cell.data != data.name or not networks:
            continue
        extractors = [name for name in networks if name in (settings.extractor or ())]
        conditions = [image_id for image_id, _ in wanted_pictures(cell, data, settings)]
        for name in (*conditions, *measurer.reference(data, conditions)):
            stored[HELD_OUT][name].update(extractors)
        kind = kind_of(cell)
        if kind.is_drawn:
            for request in requests[cell]:
                drawn[samples[cell.model, cell.data]][request].update(networks)
            continue
        by_name = made[kind.make] if kind.make is not None else stored[kind.stored_in]
        for name in names_of(cell, requests[cell], data, settings):
            by_name[name].update(extractors)
    order = (*(settings.extractor or ()), *(settings.perceptual or ()))
    work: list[Work] = []
    for prefix, by_name in stored.items():
        places = data.pictures if prefix == HELD_OUT else by_image(list_pictures(data.encodings, prefix))
        for by, names in _by_networks(by_name, order):
            work += stored_work(data.encodings, {name: places[name] for name in names}, by, prefix)
    for folder, by_request in drawn.items():
        for by, some in _by_networks(by_request, order):
            work += sample_work(folder, data, some, by)
    for make, by_name in made.items():
        for by, names in _by_networks(by_name, order):
            work += [MadeWork(names=some, by=by, make=make) for some in _pieces(names)]
    return work


def stored_work(encodings: Location, places: Mapping[str, PictureRef], by: tuple[str, ...], prefix: str = HELD_OUT) -> list[Work]:
    """Work that measures these pictures of an encodings dataset, cut in the order in which they lie."""
    names = sorted(places, key=lambda name: (places[name].file, places[name].group, name))
    return [
        StoredWork(names=some, by=by, encodings=encodings, prefix=prefix, places={name: places[name] for name in some})
        for some in _pieces(names)
    ]


def sample_work(folder: SampleFolder, data: EvaluationSet, requests: Sequence[Request], by: tuple[str, ...]) -> list[Work]:
    """Work that measures these samples of a finished folder, one piece per file."""
    images = {request.name: request.image_id for request in requests}
    work: list[Work] = []
    for entry, by_id in folder.files(requests):
        conditions = {name: images[name] for name in by_id.values()}
        places = {image: data.pictures[image] for image in conditions.values()}
        ids = {name: sample_id for sample_id, name in by_id.items()}
        work.append(
            SampleWork(
                names=tuple(conditions), by=by, folder=folder.folder, entry=entry, ids=ids, conditions=conditions,
                encodings=data.encodings, places=places,
            )
        )  # fmt: skip
    return work


def missing_work(work: Iterable[Work], columns: Mapping[str, str], held: Mapping[str, set[str]]) -> Iterator[Work]:
    """The work that is still missing: one piece for each set of names that the same networks still have to measure.

    columns: network -> its sub-folder; held: sub-folder -> the names it holds.
    """
    for one in work:
        missing: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for network in one.by:
            left = tuple(name for name in one.names if name not in held.get(columns[network], ()))
            if left:
                missing[left].append(network)
        for names, by in missing.items():
            yield replace(one, names=names, by=tuple(by))


def shard_name(work: Work, columns: Mapping[str, str]) -> str:
    """The name of the shard that holds what the networks make of this work."""
    return f"{work.what}-{content_hash([list(work.names), [columns[name] for name in work.by]])}"


def rows_by(network: FeatureExtractor | PerceptualNet, pictures: Sequence[Measured]) -> pa.Table:
    """FEATURES rows of an extractor, or DISTANCES rows of a perceptual net."""
    return feature_rows(network, pictures) if isinstance(network, FeatureExtractor) else distance_rows(network, pictures)


def feature_rows(extractor: FeatureExtractor, pictures: Sequence[Measured]) -> pa.Table:
    """The FEATURES rows of pictures of one size. Raises DataError for a feature that is not finite, naming the picture."""
    if not pictures:
        return FEATURES.empty_table()
    features = extractor.features(torch.stack([p.pixels for p in pictures])).numpy().astype(np.float32)
    for picture, row in zip(pictures, features, strict=True):
        if not np.isfinite(row).all():
            raise DataError(f"evaluate: {extractor.identity.title} gives NaN or infinity for {picture.name}; look at that picture")
    values = pa.array(features.reshape(-1), pa.float32())
    offsets = pa.array(np.arange(len(features) + 1) * features.shape[1], pa.int32())
    columns = [pa.array([p.name for p in pictures]), pa.ListArray.from_arrays(offsets, values)]
    return pa.Table.from_arrays(columns, schema=FEATURES)


def distance_rows(net: PerceptualNet, pictures: Sequence[Measured]) -> pa.Table:
    """The DISTANCES rows of those pictures that have a conditioning image."""
    pairs = [(p.name, p.pixels, p.condition) for p in pictures if p.condition is not None]
    if not pairs:
        return DISTANCES.empty_table()
    distance = net.distances(torch.stack([a for _, a, _ in pairs]), torch.stack([b for _, _, b in pairs])).numpy()
    columns = [pa.array([name for name, _, _ in pairs]), pa.array(distance.astype(np.float32), pa.float32())]
    return pa.Table.from_arrays(columns, schema=DISTANCES)


def _pieces(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(names), _PICTURES_PER_SHARD):
        yield tuple(names[start : start + _PICTURES_PER_SHARD])


def _by_networks(wanted: Mapping[K, set[str]], order: Sequence[str]) -> Iterator[tuple[tuple[str, ...], list[K]]]:
    groups: dict[tuple[str, ...], list[K]] = {}
    for name, networks in wanted.items():
        groups.setdefault(tuple(n for n in order if n in networks), []).append(name)
    yield from groups.items()
