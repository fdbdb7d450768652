"""The protocol `grids`: the pictures of the report (Fig. 1, 4 and 5 of the paper), conditioning image left, samples of it right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from semantica.data.pictures import StoredPictures, decode, to_array
from semantica.evaluation.models import EvaluatedModel
from semantica.evaluation.outcome import Outcome
from semantica.evaluation.protocols import EvaluationProtocol, Part, protocol
from semantica.evaluation.requests import Cell, wanted_pictures
from semantica.evaluation.sets import EvaluationSet
from semantica.evaluation.settings import EvaluationConfig
from semantica.report.pictures import Example, Gallery, Grid, guidance_grid, samples_grid
from semantica.report.written import Protocol


@protocol("grids")
class Grids(EvaluationProtocol):
    """Rows of w from one noise, and several samples of one image; nothing is measured."""

    def cells(self, base: Cell, settings: EvaluationConfig) -> Iterator[Cell]:
        for w in settings.guidance:
            yield replace(base, kind="grid", guidance=w)

    def networks(self, cell: Cell, settings: EvaluationConfig) -> tuple[str, ...]:
        return ()

    def part(self, outcome: Outcome) -> Part:
        part = Part()
        for model in outcome.last:
            for name in outcome.sets:
                for exhibit in grids(outcome, model, name):
                    (part.grids if isinstance(exhibit, Grid) else part.galleries).append(exhibit)  # type: ignore[arg-type]
        return part


def read_conditions(data: EvaluationSet, names: Sequence[str], side: int | None) -> dict[str, np.ndarray]:
    """The named pictures of a set with `side` px; None: as they are stored."""
    stored = StoredPictures(data.encodings).read([data.pictures[name] for name in names])
    return {name: to_array(decode(value, side or data.pictures[name].side_px)) for name, value in stored.items()}


def grids(outcome: Outcome, model: EvaluatedModel, data: str) -> Iterator[Grid | Gallery]:
    """For one model and set: several samples per condition, one sample at each w from one noise, and a gallery of both."""
    settings, the_set, side = outcome.settings, outcome.sets[data], outcome.resolution_px
    cells = [Cell(model.name, data, "grid", w) for w in settings.guidance]
    requests = [request for cell in cells for request in outcome.requests[cell]]
    shown = list(dict.fromkeys(image_id for image_id, _ in wanted_pictures(cells[0], the_set, settings)))
    conditions = read_conditions(the_set, shown, side)
    samples = outcome.samples[model.name, data].read(requests, side)
    pictures = {(r.image_id, r.index, r.guidance): samples[r.name] for r in requests}
    stated = Protocol(
        data=data, resolution_px=side, num_steps=settings.sampler.num_steps, ema=settings.use_ema, seeds=[settings.seed]
    )
    middle = min(settings.guidance, key=lambda w: abs(w - 0.5))
    left = [conditions[name] for name in shown]
    several = [[pictures[name, i, middle] for i in range(settings.num_grid_samples)] for name in shown]
    over_w = [[pictures[name, 0, w] for w in settings.guidance] for name in shown]
    of = f"{model.name}, {data}"
    yield samples_grid(left, several, guidance=middle, protocol=stated, title=f"Samples of {of}")
    yield guidance_grid(left, over_w, weights=settings.guidance, protocol=stated, title=f"Samples against guidance, {of}")
    labels = [f"w = {w:g}" for w in settings.guidance]
    examples = [
        Example(condition=conditions[name], samples=row, label=the_set.pictures[name].page_url, sample_labels=labels)
        for name, row in zip(shown, over_w, strict=True)
    ]
    yield Gallery(title=f"One by one, {of}", examples=examples, protocol=stated)
