"""Features by name -> the figures of a cell, and estimates with their standard errors over repeated cells. Pure.

Samples and reference are looked up by name in an order that the protocol fixes, so that a figure is the same to the last bit
however the work was spread. A sample that was drawn or measured twice has one row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from semantica.data.location import Location
from semantica.errors import DataError
from semantica.evaluation.features import Features
from semantica.evaluation.requests import Cell, Request, names_of, repeated, wanted_pictures
from semantica.evaluation.sets import EvaluationSet
from semantica.evaluation.settings import EvaluationConfig
from semantica.measure.frechet import FeatureStatistics, Reference, frechet_distance
from semantica.measure.networks.extractors import ENCODER, ExtractorIdentity
from semantica.measure.reference import cached_reference, reference_key
from semantica.measure.retrieval import Retrieval, retrieval
from semantica.measure.similarity import OwnOther, own_and_other

SIMILARITY = ENCODER  # the network whose cosines are reported


@dataclass(frozen=True)
class CellFigures:
    """What was measured of one cell: by extractor the Fréchet distance, by perceptual net the mean distance to the condition.

    similarity: in the encoder's features; None where no model drew, below two conditioning images, and without the encoder.
    """

    num_samples: int
    num_conditions: int
    num_reference: int
    frechet: Mapping[str, float]
    perceptual: Mapping[str, float]
    similarity: OwnOther | None


@dataclass(frozen=True)
class PageRetrieval:
    """How often the page of the condition is the nearest: to its samples; to the conditioning image itself, a real picture, which
    is what a model can reach; and to samples of another page's condition, which is chance. The gallery holds one picture of each
    page, never a conditioning image.
    """

    samples: Retrieval
    real: Retrieval
    other: Retrieval


@dataclass
class Measurer:
    """Computes cells; the statistics of a reference that several cells share are computed once."""

    settings: EvaluationConfig
    features: Mapping[str, Features]  # by evaluation set
    sets: Mapping[str, EvaluationSet]
    corpus_mean: Float[np.ndarray, " d"] | None = None
    references: Location | None = None  # the folder of reference statistics, factored once for every later evaluation
    identities: Mapping[str, ExtractorIdentity] = field(default_factory=dict)
    by_place: bool = False  # a reference in the order in which its pictures lie, not in that of their ids: sums round otherwise
    _statistics: dict[tuple[str, str, tuple[str, ...]], FeatureStatistics | Reference] = field(default_factory=dict)

    def measure(self, cell: Cell, requests: Sequence[Request], networks: Collection[str]) -> CellFigures:
        """The figures of a cell by these networks. requests: its samples, none where no model drew."""
        data, features = self.sets[cell.data], self.features[cell.data]
        conditions = [image_id for image_id, _ in wanted_pictures(cell, data, self.settings)]
        names = names_of(cell, requests, data, self.settings)
        if len(names) < 2:
            raise DataError(f"evaluate: {cell.data}: expected at least 2 samples for a Fréchet distance, got {len(names)}")
        reference = self.reference(data, conditions)
        frechet: dict[str, float] = {}
        for network in (name for name in self.settings.extractor or () if name in networks):
            drawn = FeatureStatistics.of(features.matrix(network, names))
            frechet[network] = frechet_distance(drawn, self._of_reference(cell.data, network, reference))
        nets = [net for net in self.settings.perceptual or () if net in networks and cell.is_drawn]
        unique = list(dict.fromkeys(conditions))
        is_compared = cell.is_drawn and SIMILARITY in frechet and len(unique) >= 2
        return CellFigures(
            num_samples=len(names),
            num_conditions=len(unique),
            num_reference=len(reference),
            frechet=frechet,
            perceptual={net: float(features.distances(net, names).mean()) for net in nets},
            similarity=self._similarity(features, names, conditions, unique) if is_compared else None,
        )

    def retrieval(self, cell: Cell, requests: Sequence[Request]) -> PageRetrieval | None:
        """Page retrieval of a cell's samples in the encoder's features. The gallery picture of a page is its first reference
        picture by id. None where fewer than two pages have a conditioning image and a gallery picture.
        """
        data, features = self.sets[cell.data], self.features[cell.data]
        conditions = [image_id for image_id, _ in wanted_pictures(cell, data, self.settings)]
        gallery: dict[str, str] = {}
        for name in sorted(set(self.reference(data, conditions)) - set(conditions)):
            gallery.setdefault(data.pictures[name].episode_id, name)
        place = {page: index for index, page in enumerate(gallery)}
        real = {name: place[page] for name in conditions if (page := data.pictures[name].episode_id) in place}
        asked = sorted(set(real.values()))
        if len(asked) < 2:
            return None
        drawn = zip(names_of(cell, requests, data, self.settings), conditions, strict=True)
        samples = {name: real[condition] for name, condition in drawn if condition in real}
        next_page = dict(zip(asked, [*asked[1:], asked[0]], strict=True))
        pictures = features.matrix(SIMILARITY, list(gallery.values()))

        def result(pages: Mapping[str, int]) -> Retrieval:
            queries = features.matrix(SIMILARITY, list(pages))
            return retrieval(queries, pictures, np.array(list(pages.values())), mean=self.corpus_mean)

        other = {name: next_page[page] for name, page in samples.items()}
        return PageRetrieval(result(samples), result(real), result(other))

    def reference(self, data: EvaluationSet, conditions: Sequence[str]) -> list[str]:
        """The pictures that samples of these conditioning images are compared with."""
        without = conditions if self.settings.reference == "others" else ()
        names = data.reference(without, self.settings.num_reference, self.settings.seed)
        return names if self.by_place else sorted(names)

    def _of_reference(self, data: str, network: str, reference: Sequence[str]) -> FeatureStatistics | Reference:
        key = (data, network, tuple(reference))
        if key not in self._statistics:
            self._statistics[key] = self._stored(data, network, reference)
        return self._statistics[key]

    def _stored(self, data: str, network: str, reference: Sequence[str]) -> FeatureStatistics | Reference:
        def compute() -> FeatureStatistics:
            return FeatureStatistics.of(self.features[data].matrix(network, reference))

        if self.references is None:
            return compute()
        identity, stored = self.identities[network], self.sets[data].hash  # the same picture may be stored at another size
        name = reference_key(identity.to_dict(), f"{self.features[data].resolution_px} px of {stored}", reference)
        return cached_reference(self.references, name, compute)

    def _similarity(self, features: Features, names: Sequence[str], conditions: Sequence[str], unique: Sequence[str]) -> OwnOther:
        place = {name: index for index, name in enumerate(unique)}
        own = np.array([place[name] for name in conditions])
        return own_and_other(features.matrix(SIMILARITY, names), features.matrix(SIMILARITY, unique), own, self.corpus_mean)


@dataclass(frozen=True)
class Estimate:
    """A figure: the mean over sampling seeds on the first set of conditioning images, with its standard error over_seeds; and the
    mean over sets of conditioning images at the first seed, with its own. Standard errors are None where there was one only.
    """

    value: float
    over_seeds: float | None
    mean_over_conditions: float
    over_conditions: float | None
    num_seeds: int
    num_condition_sets: int


def estimate(
    cell: Cell, results: Mapping[Cell, CellFigures], settings: EvaluationConfig, read: Callable[[CellFigures], float]
) -> Estimate:
    """The figure that `read` takes from the results of the cell and its repeats. A cell without repeats is a mean of one."""
    values = {c: read(results[c]) for c in repeated(cell, settings) if c in results}
    seeds = [value for c, value in values.items() if c.conditions == 0]
    conditions = [value for c, value in values.items() if c.seed == 0]
    return Estimate(
        float(np.mean(seeds)), _error(seeds), float(np.mean(conditions)), _error(conditions), len(seeds), len(conditions)
    )


def _error(values: Sequence[float]) -> float | None:
    """The standard error of the mean, n - 1 in the denominator of the variance."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
