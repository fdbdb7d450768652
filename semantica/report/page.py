"""The report of an evaluation: one self-contained HTML page for people, one dict (report.json) for programs.

In come figures, grids, galleries, curves and tables that were computed elsewhere; out comes a page that asks nothing of any other
host, runs no script, reads in light and dark and on a phone, and says beside every figure how it was made. Nothing here computes a
metric.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
from markupsafe import Markup

from semantica.errors import DataError
from semantica.report.charts import Curve, Histogram, curve_svg, histogram_svg
from semantica.report.paper import PAPER, PaperRow, PaperTable
from semantica.report.pictures import Example, Gallery, Grid, encoded, png_shown
from semantica.report.written import (
    NONE,
    Number,
    Protocol,
    Value,
    is_number,
    megabytes,
    number,
    plain,
    protocol_sentence,
    uncertain,
)

__all__ = [
    "PAPER",
    "Curve",
    "Example",
    "Figure",
    "Gallery",
    "Grid",
    "Histogram",
    "Number",
    "PaperRow",
    "PaperTable",
    "Protocol",
    "Report",
    "Table",
    "Value",
    "render",
    "to_json",
]

MAX_OPEN_FIGURES = 40  # of more, which stand in tables and charts as well, the list is folded away at the end
_LISTED_POINTS = 60  # a chart with at most this many points lists its numbers below itself
_RESERVED = (
    "title",
    "summary",
    "figures",
    "grids",
    "galleries",
    "curves",
    "histograms",
    "tables",
    "papers",
    "provenance",
    "protocol",
    "config",
    "versions",
    "commit",
    "date",
    "command",
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number: its name (the key in report.json), value, unit, what it means and how it was made.

    `missing` says why there is no value, where it is None.
    """

    name: str
    value: Value
    unit: str = ""
    standard_error: float | int | None = None
    explanation: str = ""
    protocol: str | Protocol = ""
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Named columns and rows of plain values; `missing` says why a cell is None.

    `errors`, where given, has the shape of `rows`: the standard error of each cell, or None.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    caption: str = ""
    errors: Sequence[Sequence[Number | None]] = ()
    protocol: str | Protocol = ""
    missing: str = ""

    def __post_init__(self) -> None:
        bad = [len(row) for row in (*self.rows, *self.errors) if len(row) != len(self.columns)]
        if bad:
            raise DataError(f"table {self.title!r}: expected {len(self.columns)} cells per row, got {bad[0]}")
        if self.errors and len(self.errors) != len(self.rows):
            raise DataError(f"table {self.title!r}: expected {len(self.rows)} rows of errors or none, got {len(self.errors)}")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the page shows: `summary` holds the verdicts, `provenance` (what, origin, licence) of pictures and weights."""

    title: str
    summary: Sequence[str]
    figures: Sequence[Figure] = ()
    grids: Sequence[Grid] = ()
    galleries: Sequence[Gallery] = ()
    curves: Sequence[Curve] = ()
    histograms: Sequence[Histogram] = ()
    papers: Sequence[PaperTable] = ()
    tables: Sequence[Table] = ()
    provenance: Sequence[tuple[str, str, str]] = ()
    protocol: Mapping[str, Value] = field(default_factory=dict)
    config_yaml: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    date: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        names = [figure.name for figure in self.figures]
        clashes = sorted({name for name in names if names.count(name) > 1 or name in _RESERVED})
        if clashes:
            raise DataError(
                f"report: expected figure names that are unique keys of report.json, got {', '.join(clashes)}; rename them"
            )


def render(report: Report) -> str:
    """The report as one self-contained HTML page; every text is escaped."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.PackageLoader("semantica", "report"),
    )
    environment.filters.update(
        number=number, uncertain=uncertain, sentence=protocol_sentence, next_picture=next, unbroken=_unbroken
    )
    environment.tests.update(link=_is_link, small=_is_small)
    exhibits: list[Grid | Gallery] = [*report.grids, *report.galleries]
    protocols: list[str | Protocol] = [figure.protocol for figure in report.figures]
    protocols += [exhibit.protocol for exhibit in exhibits]
    protocols += [curve.protocol for curve in report.curves] + [table.protocol for table in report.tables]
    is_long = len(report.figures) > MAX_OPEN_FIGURES and len(report.tables) > 0  # then the tables come first
    first = "figures" if not is_long else "paper" if report.papers else "charts" if report.curves else "tables"
    page = environment.get_template("report.html").render(
        report=report,
        is_long=is_long,
        first=first,
        # Our own drawing, escaped there.
        curves=[(curve, Markup(curve_svg(curve)), _points(curve)) for curve in report.curves],
        histograms=[(histogram, Markup(histogram_svg(histogram))) for histogram in report.histograms],
        grids=[(grid, encoded(grid.pictures())) for grid in report.grids if grid.rows],
        sheets=[(grid, png_shown(grid.png)) for grid in report.grids if not grid.rows],
        galleries=[(gallery, encoded(gallery.pictures())) for gallery in report.galleries],
        tables=[(table, _columns(table)) for table in report.tables],
        small=any(map(_is_small, protocols)),
        dash=NONE,
    )
    # The size is known when the page is there: its own three digits are not what makes it large.
    before, _, after = page.rpartition("PAGE-SIZE")
    return before + megabytes(len(page.encode())) + after


def to_json(report: Report) -> dict[str, Any]:
    """Plain data for report.json: every figure by name at the top level, then all that the page shows but its pictures.

    A number that is not finite becomes None, because JSON has no word for it.
    """
    values = {
        **{figure.name: figure.value for figure in report.figures},
        "title": report.title,
        "summary": list(report.summary),
        "protocol": dict(report.protocol),
        "figures": [_with_protocol(figure) for figure in report.figures],
        "papers": [paper.to_json() for paper in report.papers],
        "tables": [_with_protocol(table) for table in report.tables],
        "curves": [_with_protocol(curve) for curve in report.curves],
        "histograms": [dataclasses.asdict(h) | {"num_counted": sum(h.counts)} for h in report.histograms],
        "grids": [grid.to_json() for grid in report.grids],
        "galleries": [gallery.to_json() for gallery in report.galleries],
        "provenance": [{"what": what, "origin": origin, "licence": licence} for what, origin, licence in report.provenance],
        "config": report.config_yaml,
        "versions": dict(report.versions),
        "commit": report.commit,
        "date": report.date,
        "command": report.command,
    }
    return {name: plain(value) for name, value in values.items()}


def _with_protocol(exhibit: Figure | Table | Curve) -> dict[str, Any]:
    """Its fields; a protocol as the sentence that the page shows, and its settings one by one beside it."""
    values = dataclasses.asdict(exhibit)
    if isinstance(exhibit.protocol, Protocol):
        values |= {"protocol": exhibit.protocol.sentence, "settings": values["protocol"]}
    return values


def _is_link(text: str) -> bool:
    return text.startswith(("https://", "http://")) and not any(c.isspace() for c in text)


def _unbroken(text: str) -> str:
    """The text with no line ending inside "n = 48" or "32 px"."""
    return text.replace(" = ", "\u00a0=\u00a0").replace(" px", "\u00a0px")


def _is_small(protocol: str | Protocol) -> bool:
    return isinstance(protocol, Protocol) and protocol.is_small


def _columns(table: Table) -> list[tuple[bool, list[str]]]:
    """Per column: whether it is numeric, and its cells as text, fractions of one column with the same number of digits."""
    columns = []
    for index in range(len(table.columns)):
        cells = [row[index] for row in table.rows]
        errors = [row[index] for row in table.errors] or [None] * len(cells)
        numeric = bool(cells) and all(cell is None or is_number(cell) for cell in cells)
        texts = [uncertain(cell, error) for cell, error in zip(cells, errors, strict=True)]
        alone = [text for text, error in zip(texts, errors, strict=True) if error is None]
        digits = max((len(text.partition(".")[2]) for text in alone if "e" not in text), default=0)
        if numeric and 0 < digits <= 4 and all(abs(cell) < 1000 for cell in cells if is_number(cell)):
            texts = [
                f"{cell:.{digits}f}" if is_number(cell) and error is None else text
                for cell, error, text in zip(cells, errors, texts, strict=True)
            ]
        columns.append((numeric, texts))
    return columns


def _points(curve: Curve) -> list[tuple[str, str, str, str]]:
    """(series, point label, x, y) of every point as text, or nothing when there are too many to read."""
    if sum(len(xs) for xs, _ in curve.series.values()) > _LISTED_POINTS:
        return []
    points = []
    for name, (xs, ys) in curve.series.items():
        nothing = [None] * len(xs)
        labels = curve.point_labels.get(name, [""] * len(xs))
        x_errors, y_errors = curve.x_error.get(name, nothing), curve.y_error.get(name, nothing)
        for label, x, x_error, y, y_error in zip(labels, xs, x_errors, ys, y_errors, strict=True):
            points.append((name, label, uncertain(x, x_error), uncertain(y, y_error)))
    return points
