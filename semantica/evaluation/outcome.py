"""What an evaluation found, and how one figure of it is read: name, estimate, and the protocol that stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from semantica.evaluation.figures import SIMILARITY, CellFigures, Estimate, estimate
from semantica.evaluation.models import EvaluatedModel
from semantica.evaluation.networks import Networks
from semantica.evaluation.requests import Cell
from semantica.evaluation.sets import EvaluationSet
from semantica.evaluation.settings import EvaluationConfig
from semantica.report.paper import BEDROOM, CHURCH, IMAGENET, SUN397
from semantica.report.protocol import Protocol

PAPER_SETS = {"imagenet": IMAGENET, "bedroom": BEDROOM, "church": CHURCH, "sun397": SUN397}  # by the names that --data gives
_SHORT = {"inception": "fid", "inception-clean": "fid-clean", "dinov2": "fd-dinov2", "encoder": "fd-encoder"}


@dataclass(frozen=True)
class Metric:
    """One kind of figure of a cell: its short name in report.json, how it is written, by which network, and how it is read."""

    key: str
    title: str
    network: str
    read: Callable[[CellFigures], float]
    is_distance: bool  # to the reference, so that its size depends on n


@dataclass(frozen=True)
class Outcome:
    """The results of every cell, and what they were measured with."""

    settings: EvaluationConfig
    models: Sequence[EvaluatedModel]
    sets: Mapping[str, EvaluationSet]
    networks: Networks
    resolution_px: int
    results: Mapping[Cell, CellFigures]

    def metrics(self, cell: Cell) -> Iterator[Metric]:
        """What was measured of this cell."""
        found = self.results[cell]
        for name in found.frechet:
            yield Metric(_SHORT[name], self.networks.identities[name].figure, name, partial(_frechet, name), True)
        for name in found.perceptual:
            yield Metric(name, self.networks.identities[name].figure, name, partial(_perceptual, name), False)
        if found.similarity is not None:
            yield Metric("similarity-own", "similarity to the own condition", SIMILARITY, _own, False)
            yield Metric("similarity-difference", "own minus other similarity", SIMILARITY, _difference, False)

    def value(self, cell: Cell, metric: Metric) -> Estimate:
        """The figure with its standard errors."""
        return estimate(cell, self.results, self.settings, metric.read)

    def protocol(self, cell: Cell, metric: Metric) -> Protocol:
        """Everything that the figure depends on."""
        value, stated = self.value(cell, metric), self._protocol(cell, metric)
        if value.over_conditions is None:
            return stated
        over = f"{value.mean_over_conditions:.4g} ± {value.over_conditions:.2g} over {value.num_condition_sets} conditioning sets"
        return replace(stated, more=f"{stated.more}; {over}")

    def protocol_over_conditions(self, cell: Cell, metric: Metric) -> Protocol:
        """Everything that the mean over conditioning sets depends on."""
        sets = f"{self.value(cell, metric).num_condition_sets} conditioning sets"
        return replace(self._protocol(cell, metric), seeds=[self.settings.seed], error_of=sets)

    def protocol_of_all(self, cells: Sequence[Cell], metric: Metric) -> Protocol:
        """What the figures of these cells have in common: no w where they have several."""
        weights = {cell.guidance for cell in cells if cell.kind != "copy"}
        stated = self._protocol(cells[-1], metric)
        return replace(stated, guidance=stated.guidance if len(weights) == 1 else None)

    def _protocol(self, cell: Cell, metric: Metric) -> Protocol:
        found, settings, value = self.results[cell], self.settings, self.value(cell, metric)
        is_copy = cell.kind == "copy"
        dim = self.networks.identities[metric.network].dim
        more = [f"{found.num_conditions} conditioning images" if cell.kind == "pictures" else "one conditioning image a class"]
        if metric.is_distance and min(found.num_samples, found.num_reference) < dim:
            more.append(f"n is below the {dim} dimensions, so the distance is biased upwards")
        if settings.similarity is not None and not is_copy:
            more.append(f"asked for similarity {settings.similarity:g}")
        identity = self.networks.identities[metric.network]
        return Protocol(
            data=PAPER_SETS.get(cell.data, cell.data),
            resolution_px=self.resolution_px,
            num_samples=found.num_samples,
            num_reference=found.num_reference if metric.is_distance else None,
            extractor=metric.network,
            resize=identity.resize,
            num_steps=None if is_copy else settings.sampler.num_steps,
            guidance=None if is_copy else cell.guidance,
            ema=None if is_copy else settings.use_ema,
            seeds=() if is_copy else [settings.seed + s for s in range(value.num_seeds)],
            error_of=f"{value.num_seeds} sampling seeds" if value.over_seeds is not None else "",
            more="; ".join(more),
        )

    def name_of_run(self, model: str) -> str:
        """The run of a model."""
        return next(m.run for m in self.models if m.name == model)


def _frechet(name: str, found: CellFigures) -> float:
    return found.frechet[name]


def _perceptual(name: str, found: CellFigures) -> float:
    return found.perceptual[name]


def _own(found: CellFigures) -> float:
    return float("nan") if found.similarity is None else found.similarity.own


def _difference(found: CellFigures) -> float:
    return float("nan") if found.similarity is None else found.similarity.difference
