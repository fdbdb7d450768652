"""The paper's protocols (method section 5), each from results by cell to the figures, tables and curves that it stands for.

curve: Fig. 3, Fréchet distance against LPIPS over w. one-shot: Table 1 right, with Copy. grouping: Table 1 left, models beside each
other on the same sets. training: Fig. 2, Fréchet distance against training steps. What each asks to be drawn: `requests.cells_of`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from semantica.evaluation.figures import SIMILARITY
from semantica.evaluation.models import last_of_runs
from semantica.evaluation.outcome import PAPER_SETS, Metric, Outcome
from semantica.evaluation.requests import Cell, Kind
from semantica.evaluation.settings import EvaluationConfig
from semantica.report.page import Curve, Figure, Table
from semantica.report.paper import PAPER, PaperRow, PaperTable
from semantica.report.paper_charts import StepPoint, TradeOffPoint, frechet_by_step, trade_off
from semantica.report.protocol import Protocol

_PAPER_MODELS = ("semantica", "label_grouped")
_APPENDIX_B = "one_shot.semantica.imagenet.w0.5"  # whose standard errors are given there


@dataclass(frozen=True)
class Part:
    """What one protocol adds to the report."""

    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    papers: list[PaperRow] = field(default_factory=list)


def parts(outcome: Outcome) -> Iterator[Part]:
    """One part a protocol, in the order in which they were asked for."""
    last = last_of_runs(outcome.models)
    for protocol in outcome.settings.protocol:
        if protocol == "curve":
            yield _over_w("curve", "pictures", outcome.settings.guidance, last, outcome, is_curve=True)
        elif protocol == "grouping":
            yield _over_w("grouping", "pictures", outcome.settings.table_guidance, last, outcome)
        elif protocol == "one-shot":
            yield _over_w("one-shot", "classes", outcome.settings.table_guidance, last, outcome)
        elif protocol == "training":
            yield _training(outcome)


def paper_table(rows: Sequence[PaperRow]) -> list[PaperTable]:
    """Our figures beside the paper's, where a figure of ours has one; what two protocols measured alike stands there once."""
    once = {(row.paper, row.protocol.extractor): row for row in reversed(rows)}
    return [PaperTable(title="Beside the paper", rows=list(once.values())[::-1])] if rows else []


def _over_w(
    protocol: str, kind: Kind, weights: Sequence[float], models: Sequence[str], outcome: Outcome, *, is_curve: bool = False
) -> Part:
    part = Part()
    for data in outcome.sets:
        cells = [Cell(model, data, kind, w) for model in models for w in weights]
        if cells[0] not in outcome.results:  # a set without classes
            continue
        copy = [Cell("", data, "copy")] if protocol == "one-shot" else []
        for cell in (*copy, *cells):
            part.figures.extend(_figures(protocol, cell, outcome))
            part.papers.extend(_paper_rows(protocol, cell, outcome, models))
        part.tables.append(_table(protocol, data, [*copy, *cells], outcome))
        if is_curve:
            part.curves.extend(_trade_offs(data, models, weights, outcome))
    return part


def _training(outcome: Outcome) -> Part:
    part = Part()
    w = outcome.settings.training_guidance
    for data in outcome.sets:
        cells = {model.name: Cell(model.name, data, "pictures", w) for model in outcome.models}
        for cell in cells.values():
            part.figures.extend(_figures("training", cell, outcome))
        part.tables.append(_table("training", data, list(cells.values()), outcome))
        first = next(iter(cells.values()))
        for metric in (m for m in outcome.metrics(first) if m.is_distance):
            series: dict[str, list[StepPoint]] = {}
            for model in outcome.models:
                value = outcome.value(cells[model.name], metric)
                point = StepPoint(step=model.checkpoint.step, frechet=value.value, error=value.over_seeds)
                series.setdefault(model.run, []).append(point)
            stated = outcome.protocol_of_all(list(cells.values()), metric)
            title = f"{metric.title} against training steps, {data}"
            part.curves.append(
                frechet_by_step(series, frechet_name=metric.title, error_of=stated.error_of, protocol=stated, title=title)
            )
    return part


def _figures(protocol: str, cell: Cell, outcome: Outcome) -> Iterator[Figure]:
    where = f"{protocol}/{cell.model or 'copy'}/{cell.data}" + ("" if cell.kind == "copy" else f"/w{cell.guidance:g}")
    for metric in outcome.metrics(cell):
        value = outcome.value(cell, metric)
        yield Figure(
            name=f"{where}/{metric.key}",
            value=value.value,
            standard_error=value.over_seeds,
            explanation=f"{metric.title} of {'Copy' if cell.kind == 'copy' else 'samples'}, {protocol}.",
            protocol=outcome.protocol(cell, metric),
        )
        if value.over_conditions is not None:
            yield Figure(
                name=f"{where}/{metric.key}/over-conditions",
                value=value.mean_over_conditions,
                standard_error=value.over_conditions,
                explanation=f"The same, mean over {value.num_condition_sets} conditioning sets, one seed.",
                protocol=outcome.protocol_over_conditions(cell, metric),
            )


def _table(protocol: str, data: str, cells: Sequence[Cell], outcome: Outcome) -> Table:
    """A row a cell: every figure as mean over seeds, and, where there are several, over conditioning sets in another column."""
    shown = [cell for cell in cells if cell in outcome.results]
    metrics = list(outcome.metrics(next((c for c in shown if c.kind != "copy"), shown[0])))
    columns = ["model", "w", "n", *(m.title for m in metrics)]
    by_conditions = outcome.settings.num_condition_sets > 1
    columns += [f"{m.title}, over conditioning sets" for m in metrics if by_conditions]
    rows, errors = [], []
    for cell in shown:
        there = {m.key for m in outcome.metrics(cell)}
        values = [outcome.value(cell, m) if m.key in there else None for m in metrics]
        head = [cell.model or "Copy", None if cell.kind == "copy" else cell.guidance, outcome.results[cell].num_samples]
        several = [v if v and v.over_conditions is not None else None for v in values] if by_conditions else []
        rows.append([*head, *(v.value if v else None for v in values), *(v.mean_over_conditions if v else None for v in several)])
        of_several = [v.over_conditions if v else None for v in several]
        errors.append([None, None, None, *(v.over_seeds if v else None for v in values), *of_several])
    titles = {
        "curve": "Over w", "one-shot": "One shot", "grouping": "Models beside each other", "training": "Over training steps"
    }  # fmt: skip
    return Table(
        title=f"{titles[protocol]}, {data}",
        columns=columns,
        rows=rows,
        errors=errors,
        protocol=_of_all_networks(outcome.protocol_of_all(shown, metrics[0]), metrics, outcome),
        caption=_caption(outcome.settings),
        missing="not measured of copies",
    )


def _of_all_networks(stated: Protocol, metrics: Sequence[Metric], outcome: Outcome) -> Protocol:
    """The protocol of a table whose columns are of several networks: every network with its resize."""
    if len({metric.network for metric in metrics}) == 1:
        return stated
    resizes = {metric.network: outcome.networks.identities[metric.network].resize for metric in metrics}
    each = [f"{network} (resize {resize})" if resize else network for network, resize in resizes.items()]
    return replace(stated, extractor=", ".join(each), resize="")


def _caption(settings: EvaluationConfig) -> str:
    seeds = "± is the standard error of the mean over sampling seeds." if settings.num_seeds > 1 else ""
    sets = "Over conditioning sets: the mean at the first seed ± its standard error." if settings.num_condition_sets > 1 else ""
    return f"{seeds} {sets}".strip()


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


def _paper_rows(protocol: str, cell: Cell, outcome: Outcome, models: Sequence[str]) -> Iterator[PaperRow]:
    """Rows for figures that the paper prints: of a set that is called as in the paper, by a model called so or the only one."""
    if cell.data not in PAPER_SETS:
        return
    model = "copy" if cell.kind == "copy" else outcome.name_of_run(cell.model)
    if model not in (*_PAPER_MODELS, "copy"):
        model = "semantica" if len(models) == 1 else ""
    w = "" if cell.kind == "copy" else f".w{cell.guidance:g}"
    for metric in outcome.metrics(cell):
        if metric.network == SIMILARITY:  # the paper has neither a distance nor a cosine in the encoder's features
            continue
        kind = "one_shot" if protocol == "one-shot" else ("fid" if metric.is_distance else "lpips")
        key = f"{kind}.{model}.{cell.data}{w}"
        is_one_shot_of_another_kind = kind == "one_shot" and not metric.is_distance
        if key in PAPER and not is_one_shot_of_another_kind:
            value = outcome.value(cell, metric)
            stated = outcome.protocol(cell, metric)
            yield PaperRow(paper=key, value=value.value, standard_error=value.over_seeds, protocol=stated)
            if key == _APPENDIX_B:
                yield from _errors(cell, metric, outcome)


def _errors(cell: Cell, metric: Metric, outcome: Outcome) -> Iterator[PaperRow]:
    """The two means with their standard errors, as in Appendix B, where there were several seeds, or conditioning sets."""
    value, of_sets = outcome.value(cell, metric), outcome.protocol_over_conditions(cell, metric)
    means = (
        ("seeds", value.value, value.over_seeds, outcome.protocol(cell, metric)),
        ("conditions", value.mean_over_conditions, value.over_conditions, of_sets),
    )
    for over, mean, error, stated in means:
        if error is not None:
            yield PaperRow(paper=f"standard_error.{over}", value=mean, standard_error=error, protocol=stated)
