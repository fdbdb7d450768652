"""The paper's protocols (method section 5): curve, grouping, one-shot, training.

curve: Fig. 3, Fréchet distance against LPIPS over w. grouping: Table 1 left, models beside each other on the same sets. one-shot:
Table 1 right, with Copy. training: Fig. 2, Fréchet distance against training steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from semantica.evaluation.outcome import Metric, Outcome
from semantica.evaluation.protocols import EvaluationProtocol, Part, protocol
from semantica.evaluation.requests import Cell, repeated
from semantica.evaluation.settings import EvaluationConfig
from semantica.evaluation.tables import figures_of, paper_rows, table_of
from semantica.report.charts import Curve, StepPoint, TradeOffPoint, frechet_by_step, trade_off


def over_w(base: Cell, weights: Sequence[float], settings: EvaluationConfig) -> Iterator[Cell]:
    """The cell at each w, with its repeats."""
    for w in weights:
        yield from repeated(replace(base, guidance=w), settings)


def measured_over_w(name: str, title: str, base: Cell, weights: Sequence[float], outcome: Outcome) -> Part:
    """Figures, a table per set and rows beside the paper's, for the models of `outcome` at each w. base: kind of the cells."""
    part, models = Part(), [model.name for model in outcome.last]
    for data in outcome.sets:
        cells = [replace(base, model=model, data=data, guidance=w) for model in models for w in weights]
        if cells[0] not in outcome.results:  # a set without classes
            continue
        copy = [cell for cell in (Cell("", data, "copy"),) if base.kind == "classes"]
        for cell in (*copy, *cells):
            part.figures.extend(figures_of(name, cell, outcome))
            part.papers.extend(paper_rows("one_shot" if copy else "", cell, outcome, models))
        part.tables.append(table_of(f"{title}, {data}", [*copy, *cells], outcome))
    return part


@protocol("curve")
class OverW(EvaluationProtocol):
    """`num` samples at every w, each of its own conditioning image."""

    def cells(self, base: Cell, settings: EvaluationConfig) -> Iterator[Cell]:
        return over_w(base, settings.guidance, settings)

    def part(self, outcome: Outcome) -> Part:
        weights = outcome.settings.guidance
        part = measured_over_w("curve", "Over w", Cell("", "", "pictures"), weights, outcome)
        for data in outcome.sets:
            part.curves.extend(_trade_offs(data, [model.name for model in outcome.last], weights, outcome))
        return part


@protocol("grouping")
class Grouping(EvaluationProtocol):
    """All checkpoints beside each other at the w of Table 1."""

    def cells(self, base: Cell, settings: EvaluationConfig) -> Iterator[Cell]:
        return over_w(base, settings.table_guidance, settings)

    def part(self, outcome: Outcome) -> Part:
        weights = outcome.settings.table_guidance
        return measured_over_w("grouping", "Models beside each other", Cell("", "", "pictures"), weights, outcome)


@protocol("one-shot")
class OneShot(EvaluationProtocol):
    """Samples of one image per class, beside Copy, which repeats that image."""

    needs_classes = True

    def cells(self, base: Cell, settings: EvaluationConfig) -> Iterator[Cell]:
        yield Cell("", base.data, "copy")
        yield from over_w(replace(base, kind="classes"), settings.table_guidance, settings)

    def part(self, outcome: Outcome) -> Part:
        return measured_over_w("one-shot", "One shot", Cell("", "", "classes"), outcome.settings.table_guidance, outcome)


@protocol("training")
class Training(EvaluationProtocol):
    """Every kept checkpoint of every run, against its step."""

    every_step = True

    def cells(self, base: Cell, settings: EvaluationConfig) -> Iterator[Cell]:
        return over_w(base, (settings.training_guidance,), settings)

    def part(self, outcome: Outcome) -> Part:
        part = Part()
        for data in outcome.sets:
            cells = {m.name: Cell(m.name, data, "pictures", outcome.settings.training_guidance) for m in outcome.models}
            for cell in cells.values():
                part.figures.extend(figures_of("training", cell, outcome))
            part.tables.append(table_of(f"Over training steps, {data}", list(cells.values()), outcome))
            first = next(iter(cells.values()))
            part.curves.extend(_by_step(data, cells, m, outcome) for m in outcome.metrics(first) if m.is_distance)
        return part


def _by_step(data: str, cells: dict[str, Cell], metric: Metric, outcome: Outcome) -> Curve:
    series: dict[str, list[StepPoint]] = {}
    for model in outcome.models:
        value = outcome.value(cells[model.name], metric)
        point = StepPoint(step=model.checkpoint.step, frechet=value.value, error=value.over_seeds)
        series.setdefault(model.run, []).append(point)
    stated = outcome.protocol_of_all(list(cells.values()), metric)
    title = f"{metric.title} against training steps, {data}"
    return frechet_by_step(series, frechet_name=metric.title, error_of=stated.error_of, protocol=stated, title=title)


def _trade_offs(data: str, models: Sequence[str], weights: Sequence[float], outcome: Outcome) -> Iterator[Curve]:
    cells = [Cell(model, data, "pictures", w) for model in models for w in weights]
    metrics = list(outcome.metrics(cells[0]))
    for distance in (m for m in metrics if m.is_distance):
        for net in (m for m in metrics if m.network in outcome.networks.perceptual):
            stated = outcome.protocol_of_all(cells, distance)
            yield trade_off(
                {model: [_point(Cell(model, data, "pictures", w), distance, net, outcome) for w in weights] for model in models},
                frechet_name=distance.title,
                perceptual_name=net.title,
                error_of=stated.error_of,
                protocol=stated,
                title=f"Quality against diversity, {data}: {distance.title} and {net.title}",
            )


def _point(cell: Cell, distance: Metric, net: Metric, outcome: Outcome) -> TradeOffPoint:
    x, y = outcome.value(cell, distance), outcome.value(cell, net)
    return TradeOffPoint(
        guidance=cell.guidance,
        frechet=x.value,
        perceptual=y.value,
        frechet_error=x.over_seeds,
        perceptual_error=y.over_seeds,
    )
