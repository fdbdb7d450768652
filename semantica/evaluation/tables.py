"""Results by cell -> figures, tables, and rows beside the paper's: what the protocols of the paper share.

A cell is a row of a table and a few figures, each with its protocol and its standard errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from semantica.evaluation.figures import SIMILARITY
from semantica.evaluation.outcome import PAPER_SETS, Metric, Outcome
from semantica.evaluation.requests import Cell, kind_of
from semantica.evaluation.settings import EvaluationConfig
from semantica.report.page import Figure, Table
from semantica.report.paper import PAPER, PaperRow
from semantica.report.written import Protocol

_PAPER_MODELS = ("semantica", "label_grouped")
_APPENDIX_B = "one_shot.semantica.imagenet.w0.5"  # whose standard errors are given there


def figures_of(protocol: str, cell: Cell, outcome: Outcome) -> Iterator[Figure]:
    """Every figure of the cell by its name PROTOCOL/MODEL/SET/wW/METRIC."""
    title = kind_of(cell).title
    where = f"{protocol}/{cell.model or title.lower()}/{cell.data}" + (f"/w{cell.guidance:g}" if cell.is_drawn else "")
    for metric in outcome.metrics(cell):
        value = outcome.value(cell, metric)
        yield Figure(
            name=f"{where}/{metric.key}",
            value=value.value,
            standard_error=value.over_seeds,
            explanation=f"{metric.title} of {title or 'samples'}, {protocol}.",
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


def table_of(title: str, cells: Sequence[Cell], outcome: Outcome) -> Table:
    """One row per cell: every figure as mean over seeds, and, where there are several, over conditioning sets in another column."""
    shown = [cell for cell in cells if cell in outcome.results]
    metrics = list(outcome.metrics(next((c for c in shown if c.is_drawn), shown[0])))
    columns = ["model", "w", "n", *(m.title for m in metrics)]
    by_conditions = outcome.settings.num_condition_sets > 1
    columns += [f"{m.title}, over conditioning sets" for m in metrics if by_conditions]
    rows, errors = [], []
    for cell in shown:
        there = {m.key for m in outcome.metrics(cell)}
        values = [outcome.value(cell, m) if m.key in there else None for m in metrics]
        head = [cell.model or kind_of(cell).title, cell.guidance if cell.is_drawn else None, outcome.results[cell].num_samples]
        several = [v if v and v.over_conditions is not None else None for v in values] if by_conditions else []
        rows.append([*head, *(v.value if v else None for v in values), *(v.mean_over_conditions if v else None for v in several)])
        of_several = [v.over_conditions if v else None for v in several]
        errors.append([None, None, None, *(v.over_seeds if v else None for v in values), *of_several])
    return Table(
        title=title,
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


def paper_rows(kind: str, cell: Cell, outcome: Outcome, models: Sequence[str]) -> Iterator[PaperRow]:
    """Rows for figures that the paper prints: of a set that is called as in the paper, by a model called so or the only one.

    kind: how their keys begin, "" for the metric's name.
    """
    if cell.data not in PAPER_SETS:
        return
    model = outcome.name_of_run(cell.model) if cell.is_drawn else kind_of(cell).title.lower()
    if model not in (*_PAPER_MODELS, "copy"):
        model = "semantica" if len(models) == 1 else ""
    w = f".w{cell.guidance:g}" if cell.is_drawn else ""
    for metric in outcome.metrics(cell):
        if metric.network == SIMILARITY:  # the paper has neither a distance nor a cosine in the encoder's features
            continue
        key = f"{kind or ('fid' if metric.is_distance else 'lpips')}.{model}.{cell.data}{w}"
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
