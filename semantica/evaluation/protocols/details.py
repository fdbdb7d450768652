"""The protocol `details`: what one Fréchet distance hides, for the samples of one w.

Kernel distance and the manifold's precision, recall, density and coverage in every extractor's features; in the encoder's features
the diversity among samples of one condition, and whether samples are nearer to training pictures than held-out pictures are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from semantica.evaluation.features import Features
from semantica.evaluation.figures import SIMILARITY, Measurer
from semantica.evaluation.outcome import Metric, Outcome, TrainPictures
from semantica.evaluation.protocols import EvaluationProtocol, Part, protocol
from semantica.evaluation.requests import Cell, Request
from semantica.evaluation.sets import some_of
from semantica.evaluation.settings import EvaluationConfig
from semantica.measure.diversity import diversity
from semantica.measure.kernel import kernel_distance
from semantica.measure.manifold import manifold
from semantica.measure.nearest import nearest_training
from semantica.report.page import Figure
from semantica.report.written import Protocol

_SUBSET, _MANY_SUBSETS = 1000, 100  # of the kernel distance, as torch-fidelity


@protocol("details")
class Details(EvaluationProtocol):
    """The cell of one w, and a grid of several samples per condition."""

    needs_train = True

    def cells(self, base: Cell, settings: EvaluationConfig) -> Iterator[Cell]:
        yield replace(base, guidance=settings.details_guidance)
        yield replace(base, kind="grid", guidance=settings.details_guidance)

    def networks(self, cell: Cell, settings: EvaluationConfig) -> tuple[str, ...]:
        everything = super().networks(cell, settings)
        return everything if cell.kind != "grid" else tuple(name for name in everything if name == SIMILARITY)

    def part(self, outcome: Outcome) -> Part:
        part = Part()
        for model in outcome.last:
            for data in outcome.sets:
                (cell, grid) = self.cells(Cell(model.name, data, "pictures"), outcome.settings)
                part.figures.extend(details(cell, outcome.requests[cell], outcome.requests[grid], outcome))
        return part


def details(cell: Cell, requests: Sequence[Request], grid: Sequence[Request], outcome: Outcome) -> Iterator[Figure]:
    """The figures of a cell. grid: several samples of some conditions, for the diversity. Needs two samples, as every cell does."""
    assert outcome.measurer is not None
    measurer, train = outcome.measurer, outcome.train
    settings, features = measurer.settings, measurer.features[cell.data]
    names = [request.name for request in requests][: settings.num_details]
    reference = measurer.reference(measurer.sets[cell.data], [r.image_id for r in requests])
    reference = some_of(reference, settings.num_details, f"details/{settings.seed}")
    where = f"details/{cell.model}/{cell.data}/w{cell.guidance:g}"
    alone = replace(outcome, results={cell: outcome.results[cell]})  # one seed and one conditioning set, whatever others repeat
    for metric in (m for m in outcome.metrics(cell) if m.is_distance):
        real, drawn = features.matrix(metric.network, reference), features.matrix(metric.network, names)
        protocol = alone.protocol(cell, replace(metric, is_distance=False))  # the bias of a Fréchet distance is not theirs
        protocol = replace(protocol, num_samples=len(drawn), num_reference=len(real))
        yield from _kernel(where, metric, real, drawn, settings.seed, protocol)
        if min(len(real), len(drawn)) > settings.neighbours:
            figures = manifold(real, drawn, settings.neighbours)
            stated = replace(protocol, more=f"{protocol.more}; k = {figures.k}")
            for name in ("precision", "recall", "density", "coverage"):
                title = f"{name.capitalize()} of the samples' manifold in {metric.network} features."
                yield Figure(
                    name=f"{where}/{name}-{metric.network}", value=getattr(figures, name), explanation=title, protocol=stated
                )
    if SIMILARITY in (settings.extractor or ()):
        yield from _diversity(where, grid, features, measurer)
        if train is not None:
            yield from _nearest(where, features.matrix(SIMILARITY, names), features.matrix(SIMILARITY, reference), train, measurer)


def _kernel(
    where: str, metric: Metric, real: Float32[np.ndarray, "n d"], drawn: Float32[np.ndarray, "m d"], seed: int, protocol: Protocol
) -> Iterator[Figure]:
    size = min(_SUBSET, len(real), len(drawn))
    distance = kernel_distance(real, drawn, subset_size=size, num_subsets=_MANY_SUBSETS, seed=seed)
    stated = replace(protocol, more=f"{protocol.more}; {_MANY_SUBSETS} subsets of {size}")
    name = "kid" if metric.network == "inception" else f"kd-{metric.network}"
    title = f"Kernel distance (KID, cubic kernel) in {metric.network} features, unbiased in n."
    yield Figure(name=f"{where}/{name}", value=distance.mean, explanation=title, protocol=stated)
    spread = "Standard deviation of the kernel distance over subsets, which overlap: no standard error."
    yield Figure(name=f"{where}/{name}/std-over-subsets", value=distance.std, explanation=spread, protocol=stated)


def _diversity(where: str, grid: Sequence[Request], features: Features, measurer: Measurer) -> Iterator[Figure]:
    images = list(dict.fromkeys(request.image_id for request in grid))
    if len(images) < 2 or measurer.settings.num_grid_samples < 2:
        return
    condition = np.array([images.index(request.image_id) for request in grid])
    spread = diversity(features.matrix(SIMILARITY, [r.name for r in grid]), condition, measurer.corpus_mean)
    yield Figure(
        name=f"{where}/diversity",
        value=spread.mean,
        standard_error=spread.standard_error,
        explanation="1 - cosine of two samples of one condition; 0: always the same picture.",
        protocol=(
            f"{spread.num_samples} samples of {spread.num_conditions} conditioning images, encoder features; ± over conditions"
        ),
    )


def _nearest(
    where: str,
    drawn: Float32[np.ndarray, "m d"],
    held_out: Float32[np.ndarray, "n d"],
    train: TrainPictures,
    measurer: Measurer,
) -> Iterator[Figure]:
    nearest = nearest_training(drawn, train.features.matrix(SIMILARITY, train.names), held_out, mean=measurer.corpus_mean)
    stated = (
        f"{len(drawn)} samples, {len(train.names)} training pictures, {len(held_out)} held-out ones, encoder features; a copy is "
        f"nearer (cosine above {nearest.threshold:.3f}) than {nearest.quantile:.0%} of held-out pictures"
    )
    yield Figure(
        name=f"{where}/share-of-copies",
        value=nearest.share_of_copies,
        standard_error=nearest.standard_error,
        explanation="Share of samples that are suspiciously near to a training picture.",
        protocol=stated,
    )
