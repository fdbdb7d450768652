"""The report of an evaluation: one self-contained HTML page for people, one dict (report.json) for programs.

In come figures, grids, curves and tables that were computed elsewhere; out comes a page that asks nothing of any other host, reads
in light and dark and on a phone, and says beside every figure how it was made. Nothing here computes a metric.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import numbers
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from semantica.errors import DataError
from semantica.metrics.charts import Curve, Histogram, Number, curve_svg, histogram_svg

Value = float | int | str | None
_LISTED_POINTS = 60  # a chart with at most this many points lists its numbers below itself
_RESERVED = (
    "title",
    "summary",
    "figures",
    "grids",
    "curves",
    "histograms",
    "tables",
    "provenance",
    "protocol",
    "config",
    "versions",
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number: its name (the key in report.json), value, unit, what it means and how it was made (n, extractor, …)."""

    name: str
    value: Value
    unit: str = ""
    standard_error: float | int | None = None
    explanation: str = ""
    protocol: str = ""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A PNG with a caption and, in `alt`, what it shows in words."""

    title: str
    png: bytes = field(repr=False)
    alt: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Named columns and rows of plain values."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    caption: str = ""

    def __post_init__(self) -> None:
        bad = [len(row) for row in self.rows if len(row) != len(self.columns)]
        if bad:
            raise DataError(f"table {self.title!r}: expected {len(self.columns)} cells a row, got {bad[0]}")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the page shows: `summary` holds the verdicts, `provenance` (what, origin, licence) of pictures and weights."""

    title: str
    summary: Sequence[str]
    figures: Sequence[Figure] = ()
    grids: Sequence[Grid] = ()
    curves: Sequence[Curve] = ()
    histograms: Sequence[Histogram] = ()
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
        clashes = sorted({name for name in names if names.count(name) > 1 or name in (*_RESERVED, "commit", "date", "command")})
        if clashes:
            raise DataError(
                f"report: expected figure names that are unique keys of report.json, got {', '.join(clashes)}; rename them"
            )


def render(report: Report) -> str:
    """The report as one self-contained HTML page; every text is escaped."""
    source = resources.files("semantica.metrics").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=_number, uncertain=_uncertain)
    environment.tests.update(link=_is_link)
    curves = [(curve, Markup(curve_svg(curve)), _points(curve)) for curve in report.curves]  # our own drawing, escaped there
    histograms = [(histogram, Markup(histogram_svg(histogram))) for histogram in report.histograms]
    grids = [(grid, _data_uri(grid.png), *_png_size(grid.png)) for grid in report.grids]
    return environment.from_string(source).render(
        report=report,
        curves=curves,
        histograms=histograms,
        grids=grids,
        tables=[(table, _columns(table)) for table in report.tables],
    )


def to_json(report: Report) -> dict[str, Any]:
    """Plain data for report.json: every figure by name at the top level, then protocol, figures in full, tables, curves, versions.

    A number that is not finite becomes None, because JSON has no word for it. Pictures stay in the page.
    """
    plain = {
        **{figure.name: figure.value for figure in report.figures},
        "title": report.title,
        "summary": list(report.summary),
        "protocol": dict(report.protocol),
        "figures": [dataclasses.asdict(figure) for figure in report.figures],
        "tables": [dataclasses.asdict(table) for table in report.tables],
        "curves": [dataclasses.asdict(curve) for curve in report.curves],
        "histograms": [dataclasses.asdict(histogram) for histogram in report.histograms],
        "grids": [{"title": grid.title, "caption": grid.caption, "alt": grid.alt} for grid in report.grids],
        "provenance": [{"what": what, "origin": origin, "licence": licence} for what, origin, licence in report.provenance],
        "config": report.config_yaml,
        "versions": dict(report.versions),
        "commit": report.commit,
        "date": report.date,
        "command": report.command,
    }
    return {name: _plain(value) for name, value in plain.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if hasattr(value, "tolist"):  # a NumPy scalar or array
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> str:
    """The value as read by people: four digits that count, thin spaces between thousands from 10 000 on, a dash for none."""
    if value is None:
        return "–"
    if not _is_number(value):
        return str(value)
    if not math.isfinite(value) or (abs(value) < 1000 and value != int(value)) or abs(value) >= 1e15:
        return f"{value:.4g}"
    whole = round(value)
    return f"{whole:,}".replace(",", "\u2009") if abs(whole) >= 10_000 else str(whole)


def _uncertain(figure: Figure) -> str:
    """Value ± standard error, both to the second digit of the error."""
    error, value = figure.standard_error, figure.value
    if error is None or not _is_number(value) or not (math.isfinite(error) and error > 0):
        return _number(value)
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)  # Real: NumPy scalars too


def _is_link(text: str) -> bool:
    return text.startswith(("https://", "http://")) and not any(c.isspace() for c in text)


def _columns(table: Table) -> list[tuple[bool, list[str]]]:
    """Per column: whether it is numeric, and its cells as text, fractions of one column with the same number of digits."""
    columns = []
    for index in range(len(table.columns)):
        cells = [row[index] for row in table.rows]
        texts = [_number(cell) for cell in cells]
        digits = max((len(text.partition(".")[2]) for text in texts if "e" not in text), default=0)
        numeric = bool(cells) and all(cell is None or _is_number(cell) for cell in cells)
        if numeric and 0 < digits <= 4 and all(abs(float(cell)) < 1000 for cell in cells if cell is not None):
            texts = [text if cell is None else f"{cell:.{digits}f}" for cell, text in zip(cells, texts, strict=True)]
        columns.append((numeric, texts))
    return columns


def _points(curve: Curve) -> list[tuple[str, str, Number, Number]]:
    """(series, point label, x, y) of every point, or nothing when there are too many to read."""
    if sum(len(xs) for xs, _ in curve.series.values()) > _LISTED_POINTS:
        return []
    return [
        (name, label, x, y)
        for name, (xs, ys) in curve.series.items()
        for label, x, y in zip(curve.point_labels.get(name, [""] * len(xs)), xs, ys, strict=True)
    ]


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _png_size(png: bytes) -> tuple[int, int]:
    if not png.startswith(b"\x89PNG\r\n\x1a\n"):
        raise DataError(f"report: expected a grid as PNG, got {png[:8]!r}")
    width, height = struct.unpack(">II", png[16:24])
    return width, height
