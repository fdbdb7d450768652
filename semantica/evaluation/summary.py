"""An outcome -> the report: the part of each protocol, what is known of the sets, and the sentences that a reader sees first."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from semantica.config import to_yaml
from semantica.evaluation.outcome import Outcome
from semantica.evaluation.protocols import chosen, without_classes
from semantica.evaluation.requests import Cell, kind_of
from semantica.report.page import Report, Table, Value
from semantica.report.paper import PaperRow, PaperTable
from semantica.tracking import git_commit

MAX_SENTENCES = 12  # that say one figure each; of more, the lowest of each set


def build_report(outcome: Outcome, *, notes: Sequence[str]) -> Report:
    """The report of the protocols that were asked for. notes: which networks were left out, and why."""
    protocols = chosen(outcome.settings).values()
    parts = [one.part(outcome) for one in protocols]
    page = next((one.page for one in protocols if one.page), "")
    sources = outcome.sources
    return Report(
        title=page or "Semantica: evaluation",
        summary=[*(line for part in parts for line in part.summary), *(() if page else _sentences(outcome)), *notes],
        figures=[figure for part in parts for figure in part.figures],
        grids=[grid for part in parts for grid in part.grids],
        galleries=[gallery for part in parts for gallery in part.galleries],
        curves=[curve for part in parts for curve in part.curves],
        histograms=[histogram for part in parts for histogram in part.histograms],
        tables=[*(table for part in parts for table in part.tables), *(() if page else (_sets_table(outcome),))],
        papers=_beside_the_paper([row for part in parts for row in part.papers]),
        provenance=[*(row for part in parts for row in part.provenance), *(() if page else _weights(outcome))],
        protocol={**({} if page else _protocol(outcome)), **{k: v for part in parts for k, v in part.stated.items()}},
        config_yaml=sources.config_yaml or ("" if page else to_yaml(outcome.settings)),
        versions={name: version(name) for name in ("ray", "torch", "transformers", "mlflow", "pyarrow", "pillow")},
        commit=git_commit(),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=sources.command,
    )


def _beside_the_paper(rows: Sequence[PaperRow]) -> list[PaperTable]:
    """Our figures beside the paper's, where a figure of ours has one; what two protocols measured alike stands there once."""
    once = {(row.paper, row.protocol.extractor): row for row in reversed(rows)}
    return [PaperTable(title="Beside the paper", rows=list(once.values())[::-1])] if rows else []


def _weights(outcome: Outcome) -> list[tuple[str, str, str]]:
    identities = outcome.networks.identities.values()
    return [(i.title, f"SHA-256 {i.weights_sha256[:16]}, resize: {i.resize}", "") for i in identities]


def _sentences(outcome: Outcome) -> list[str]:
    """What was measured in a line each, then what a reader must know before comparing anything."""
    shown = [cell for cell in outcome.results if (cell.seed, cell.conditions) == (0, 0)]
    sentences = [_in_words(cell, outcome) for cell in shown]
    if len(sentences) > MAX_SENTENCES:
        sentences = list(_best_of_each(shown, outcome))
    counts = [min(f.num_samples, f.num_reference) for f in outcome.results.values()]
    smallest = min(counts, default=0)
    dims = {i.title: i.dim for i in outcome.networks.identities.values() if i.dim > smallest}
    if counts and dims:
        names = ", ".join(f"{title} ({dim})" for title, dim in dims.items())
        sentences.append(
            f"Small n: {smallest} pictures are fewer than the dimensions of {names}. A Fréchet distance is then biased upwards, by "
            "about 1/n: compare figures of equal n within this report only."
        )
    for data in outcome.sets.values():
        if data.quarantined:
            reasons = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in sorted(data.quarantined.items()))
            sentences.append(f"{data.name}: not used, each with a row in the quarantine: {reasons}.")
    protocols = chosen(outcome.settings)
    by_class = ", ".join(name for name, one in protocols.items() if one.needs_classes)
    for name in without_classes(outcome.settings, list(outcome.sets.values())):
        sentences.append(f"{name}: left out of {by_class}, because its pictures have one label; the other sets have classes.")
    if outcome.settings.num_condition_sets > 1:
        for data in outcome.sets.values():
            if outcome.settings.num >= len(data.pictures) and not all(one.needs_classes for one in protocols.values()):
                sentences.append(
                    f"{data.name}: the conditioning images are all {len(data.pictures)} pictures, the same in every set."
                )
    return sentences


def _in_words(cell: Cell, outcome: Outcome) -> str:
    figures = outcome.results[cell]
    values = ", ".join(f"{m.title} {outcome.value(cell, m).value:.3g}" for m in outcome.metrics(cell) if m.is_distance)
    return f"{_named(cell)}{_per_class(cell)} on {cell.data}: {values}; n = {figures.num_samples} against {figures.num_reference}."


def _best_of_each(cells: Sequence[Cell], outcome: Outcome) -> Iterator[str]:
    """A line for each set and kind of samples: how many cells the tables show, and the lowest of each distance."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.data, cell.kind), []).append(cell)
    for (data, _), group in groups.items():
        if len(group) == 1:
            yield _in_words(group[0], outcome)
            continue
        lowest = []
        for metric in (m for m in outcome.metrics(group[0]) if m.is_distance):
            best = min(group, key=lambda cell: outcome.value(cell, metric).value)
            lowest.append(f"{metric.title} {outcome.value(best, metric).value:.3g} ({_named(best)})")
        yield f"{data}{_per_class(group[0])}: the lowest of {len(group)} in the tables below: {', '.join(lowest)}."


def _named(cell: Cell) -> str:
    return f"{cell.model} at w = {cell.guidance:g}" if cell.is_drawn else kind_of(cell).title


def _per_class(cell: Cell) -> str:
    return " (one image a class)" if kind_of(cell).of_classes else ""


def _sets_table(outcome: Outcome) -> Table:
    rows: list[list[Value]] = [
        [s.name, len(s.pictures), len(s.labels), s.num_twice, sum(s.quarantined.values()), s.hash[:16]]
        for s in outcome.sets.values()
    ]
    return Table(
        title="Evaluation sets",
        columns=["name", "pictures", "labels", "on several pages, counted once", "quarantined", "hash of the content"],
        rows=rows,
    )


def _protocol(outcome: Outcome) -> dict[str, Value]:
    settings = outcome.settings
    reference = "all pictures of the set" if settings.reference == "all" else "the pictures that are no conditioning images"
    return {
        "models": ", ".join(f"{m.name} (step {m.checkpoint.step}, {m.hash})" for m in outcome.models),
        "data": ", ".join(f"{s.name} ({len(s.pictures)} pictures, {s.hash[:12]})" for s in outcome.sets.values()),
        "resolution": f"{outcome.resolution_px} px; real pictures are area-averaged to it before anything is measured",
        "reference": reference + (f", {settings.num_reference} of them" if settings.num_reference else ""),
        "sampler": f"{settings.sampler.name}, {settings.sampler.num_steps} steps",
        "weights": "EMA" if settings.use_ema else "raw",
        "sampling seeds": f"{settings.num_seeds}, from {settings.seed}",
        "sets of conditioning images": settings.num_condition_sets,
        "noise": "a sample's own, keyed by seed, conditioning image and index; the same over w and over models",
        **{name: f"{i.title}; {i.resize}; SHA-256 {i.weights_sha256[:12]}" for name, i in outcome.networks.identities.items()},
    }
