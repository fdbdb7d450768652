"""An outcome -> the report: the protocols' parts, what is known of the sets, and the sentences that a reader sees first."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from semantica.config import to_yaml
from semantica.evaluation.outcome import Outcome
from semantica.evaluation.protocols import paper_table, parts
from semantica.evaluation.requests import Cell, without_classes
from semantica.report.page import Figure, Gallery, Grid, Report, Table, Value
from semantica.tracking import git_commit

MAX_SENTENCES = 12  # that say one figure each; of more, the lowest of each set
_OF = {"pictures": "", "classes": " (one image a class)", "copy": " (one image a class)"}


def build_report(
    outcome: Outcome, *, details: Sequence[Figure], exhibits: Sequence[Grid | Gallery], notes: Sequence[str], command: str
) -> Report:
    """The report of the protocols that were asked for; details: the figures of that one; notes: what was left out."""
    found = list(parts(outcome))
    return Report(
        title="Semantica: evaluation",
        summary=[*_sentences(outcome), *notes],
        figures=[*(figure for part in found for figure in part.figures), *details],
        grids=[e for e in exhibits if isinstance(e, Grid)],
        galleries=[e for e in exhibits if isinstance(e, Gallery)],
        curves=[curve for part in found for curve in part.curves],
        tables=[*(table for part in found for table in part.tables), _sets_table(outcome)],
        papers=paper_table([row for part in found for row in part.papers]),
        provenance=[
            (i.title, f"SHA-256 {i.weights_sha256[:16]}, resize: {i.resize}", "") for i in outcome.networks.identities.values()
        ],
        protocol=_protocol(outcome),
        config_yaml=to_yaml(outcome.settings),
        versions={name: version(name) for name in ("ray", "torch", "transformers", "mlflow", "pyarrow", "pillow")},
        commit=git_commit(),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=command,
    )


def _sentences(outcome: Outcome) -> list[str]:
    """What was measured in a line each, then what a reader must know before comparing anything."""
    shown = [cell for cell in outcome.results if (cell.seed, cell.conditions) == (0, 0) and cell.kind != "grid"]
    found = [_in_words(cell, outcome) for cell in shown]
    if len(found) > MAX_SENTENCES:
        found = list(_best_of_each(shown, outcome))
    counts = [min(f.num_samples, f.num_reference) for f in outcome.results.values()]
    smallest = min(counts, default=0)
    dims = {i.title: i.dim for i in outcome.networks.identities.values() if i.dim > smallest}
    if counts and dims:
        names = ", ".join(f"{title} ({dim})" for title, dim in dims.items())
        found.append(
            f"Small n: {smallest} pictures are fewer than the dimensions of {names}. A Fréchet distance is then biased upwards, by "
            "about 1/n: compare figures of equal n within this report only."
        )
    for data in outcome.sets.values():
        if data.quarantined:
            reasons = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in sorted(data.quarantined.items()))
            found.append(f"{data.name}: not used, each with a row in the quarantine: {reasons}.")
    for name in without_classes(outcome.settings, outcome.sets.values()):
        found.append(f"{name}: left out of one-shot, because its pictures have one label; the other sets have classes.")
    if outcome.settings.num_condition_sets > 1:
        for data in outcome.sets.values():
            if outcome.settings.num >= len(data.pictures) and set(outcome.settings.protocol) - {"one-shot"}:
                found.append(f"{data.name}: the conditioning images are all {len(data.pictures)} pictures, the same in every set.")
    return found


def _in_words(cell: Cell, outcome: Outcome) -> str:
    figures = outcome.results[cell]
    values = ", ".join(f"{m.title} {outcome.value(cell, m).value:.3g}" for m in outcome.metrics(cell) if m.is_distance)
    return f"{_named(cell)}{_OF[cell.kind]} on {cell.data}: {values}; n = {figures.num_samples} against {figures.num_reference}."


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
        kind = _OF[group[0].kind]
        yield f"{data}{kind}: the lowest of {len(group)} in the tables below: {', '.join(lowest)}."


def _named(cell: Cell) -> str:
    return "Copy" if cell.kind == "copy" else f"{cell.model} at w = {cell.guidance:g}"


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
