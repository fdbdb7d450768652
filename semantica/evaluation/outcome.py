"""The results of an evaluation, and how one figure of it is read: name, estimate, and the protocol that stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from semantica.data.location import Location
from semantica.evaluation.features import Features
from semantica.evaluation.figures import SIMILARITY, CellFigures, Estimate, Measurer, estimate
from semantica.evaluation.models import EvaluatedModel, last_of_runs
from semantica.evaluation.networks import Networks
from semantica.evaluation.requests import Cell, Request, kind_of
from semantica.evaluation.samples import SampleFolder
from semantica.evaluation.sets import EvaluationSet
from semantica.evaluation.settings import EvaluationConfig
from semantica.measure.networks.extractors import key_of
from semantica.report.paper import BEDROOM, CHURCH, IMAGENET, SUN397
from semantica.report.written import Protocol

PAPER_SETS = {"imagenet": IMAGENET, "bedroom": BEDROOM, "church": CHURCH, "sun397": SUN397}  # by the names that --data gives


@dataclass(frozen=True)
class Metric:
    """One kind of figure of a cell: its short name in report.json, how it is written, by which network, and how it is read."""

    key: str
    title: str
    network: str
    read: Callable[[CellFigures], float]
    is_distance: bool  # to the reference, so that its size depends on n


@dataclass(frozen=True)
class TrainPictures:
    """The features of training pictures, and their names."""

    features: Features
    names: Sequence[str]


@dataclass(frozen=True)
class Sources:
    """What the report tells of besides the samples, where it is known: outputs of earlier stages, configuration and command.

    samples: an output of semantica generate that is measured instead of samples that the evaluation draws. train: the encodings
    that the first checkpoint was trained on, whose pictures `details` looks for among samples.
    """

    episodes: Location | None = None
    selection: Location | None = None
    samples: Location | None = None
    train: Location | None = None
    config_yaml: str = ""
    command: str = ""


NO_SOURCES = Sources()


@dataclass(frozen=True)
class Outcome:
    """The results of every measured cell, and what a protocol may read beside them. requests: the samples of each cell.

    samples: where those of a (model, set) lie. measurer: for figures that are no property of one cell.
    """

    settings: EvaluationConfig
    models: Sequence[EvaluatedModel]
    sets: Mapping[str, EvaluationSet]
    networks: Networks
    resolution_px: int
    results: Mapping[Cell, CellFigures]
    requests: Mapping[Cell, Sequence[Request]] = field(default_factory=dict)
    samples: Mapping[tuple[str, str], SampleFolder] = field(default_factory=dict)
    measurer: Measurer | None = None
    train: TrainPictures | None = None
    sources: Sources = NO_SOURCES

    @property
    def last(self) -> list[EvaluatedModel]:
        """Of each run the model that was trained longest."""
        names = last_of_runs(self.models)
        return [model for model in self.models if model.name in names]

    def metrics(self, cell: Cell) -> Iterator[Metric]:
        """What was measured of this cell."""
        figures = self.results[cell]
        for name in figures.frechet:
            yield Metric(key_of(name), self.networks.identities[name].figure, name, partial(_frechet, name), True)
        for name in figures.perceptual:
            yield Metric(name, self.networks.identities[name].figure, name, partial(_perceptual, name), False)
        if figures.similarity is not None:
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
        weights = {cell.guidance for cell in cells if cell.is_drawn}
        stated = self._protocol(cells[-1], metric)
        return replace(stated, guidance=stated.guidance if len(weights) == 1 else None)

    def _protocol(self, cell: Cell, metric: Metric) -> Protocol:
        figures, settings, value, drawn = self.results[cell], self.settings, self.value(cell, metric), cell.is_drawn
        dim = self.networks.identities[metric.network].dim
        of_classes = kind_of(cell).of_classes
        more = ["one conditioning image a class" if of_classes else f"{figures.num_conditions} conditioning images"]
        if metric.is_distance and min(figures.num_samples, figures.num_reference) < dim:
            more.append(f"n is below the {dim} dimensions, so the distance is biased upwards")
        if settings.similarity is not None and drawn:
            more.append(f"asked for similarity {settings.similarity:g}")
        identity = self.networks.identities[metric.network]
        return Protocol(
            data=PAPER_SETS.get(cell.data, cell.data),
            resolution_px=self.resolution_px,
            num_samples=figures.num_samples,
            num_reference=figures.num_reference if metric.is_distance else None,
            extractor=metric.network,
            resize=identity.resize,
            num_steps=settings.sampler.num_steps if drawn else None,
            guidance=cell.guidance if drawn else None,
            ema=settings.use_ema if drawn else None,
            seeds=[settings.seed + s for s in range(value.num_seeds)] if drawn else (),
            error_of=f"{value.num_seeds} sampling seeds" if value.over_seeds is not None else "",
            more="; ".join(more),
        )

    def name_of_run(self, model: str) -> str:
        """The run of a model."""
        return next(m.run for m in self.models if m.name == model)


def _frechet(name: str, figures: CellFigures) -> float:
    return figures.frechet[name]


def _perceptual(name: str, figures: CellFigures) -> float:
    return figures.perceptual[name]


def _own(figures: CellFigures) -> float:
    return float("nan") if figures.similarity is None else figures.similarity.own


def _difference(figures: CellFigures) -> float:
    return float("nan") if figures.similarity is None else figures.similarity.difference
