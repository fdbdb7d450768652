"""Curves and histograms of the report as inline SVG: no pixels, no fonts to fetch, legible on a light and on a dark page.

Axes and text take the page's own text colour (`currentColor`); lines have fixed colours of middle lightness and differ in dash and
marker too, so that colour is never the only clue. The same numbers give the same bytes. Two curves of the paper have functions of
their own: `trade_off` (Fig. 3) and `frechet_by_step` (Fig. 2).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from semantica.errors import DataError
from semantica.report.written import Number, Protocol

_INK = "#010203"  # stands for currentColor until the SVG is written
_COLOURS = ("#3f86c9", "#d67d1e", "#2f9e77", "#b065c0", "#cf4f58", "#8a8a2b")
_DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (2, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_SIZE = (4.6, 3.2)  # inches: as wide as a phone, so that text is no smaller there than it was written
_LABEL = 9.0
_MARKED_POINTS = 40  # beyond it markers hide the line
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "semantica",
    "text.parse_math": False,
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One chart: named series of (xs, ys), drawn in order; `point_labels` (by series) writes e.g. w beside each point.

    `x_error` and `y_error` (by series) are standard errors, as many as points, None where none is known; `error_of` says what
    they were taken over.
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[Number], Sequence[Number]]]
    caption: str = ""
    log_x: bool = False
    log_y: bool = False
    point_labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    x_error: Mapping[str, Sequence[Number | None]] = field(default_factory=dict)
    y_error: Mapping[str, Sequence[Number | None]] = field(default_factory=dict)
    error_of: str = ""
    protocol: str | Protocol = ""

    def __post_init__(self) -> None:
        for name, (xs, ys) in self.series.items():
            if len(xs) != len(ys) or len(xs) == 0:
                raise DataError(f"curve {self.title!r}: expected as many ys as xs in {name!r}, got {len(xs)} and {len(ys)}")
            if len(self.point_labels.get(name, xs)) != len(xs):
                raise DataError(f"curve {self.title!r}: expected {len(xs)} point labels in {name!r}")
        for what, errors in (("x_error", self.x_error), ("y_error", self.y_error)):
            for name, values in errors.items():
                expected = len(self.series[name][0]) if name in self.series else 0
                if len(values) != expected or any(value is not None and not value >= 0 for value in values):
                    raise DataError(
                        f"curve {self.title!r}: expected {expected} numbers of at least 0 in {what} of {name!r}, got {list(values)}"
                    )


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts between consecutive edges, the band [low, high] that is used, and the share of all counts inside it (0-1)."""

    title: str
    x_label: str
    edges: Sequence[Number]
    counts: Sequence[int]
    low: Number
    high: Number
    share_inside: Number
    caption: str = ""

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1:
            raise DataError(f"histogram {self.title!r}: expected {len(self.counts) + 1} edges, got {len(self.edges)}")


def curve_svg(curve: Curve) -> str:
    """The curve as one `<svg>` element."""
    with matplotlib.rc_context(_SETTINGS):
        canvas = Canvas(figsize=_SIZE, layout="constrained")
        axes = canvas.subplots()
        axes.grid(True)
        for index, (name, (xs, ys)) in enumerate(curve.series.items()):
            look = index % len(_COLOURS)
            marker = _MARKERS[look] if len(xs) <= _MARKED_POINTS else None
            style: dict[str, Any] = {"color": _COLOURS[look], "linestyle": _DASHES[look], "marker": marker, "markersize": 4.5}
            axes.plot(xs, ys, label=_short(name), linewidth=1.6, **style)
            across, up = _bars(curve.x_error.get(name)), _bars(curve.y_error.get(name))
            if across or up:
                axes.errorbar(xs, ys, xerr=across, yerr=up, fmt="none", ecolor=_COLOURS[look], elinewidth=1, capsize=2)
        axes.set_xlabel(_short(curve.x_label))
        axes.set_ylabel(_short(curve.y_label))
        for axis, is_log, set_scale in ((axes.xaxis, curve.log_x, axes.set_xscale), (axes.yaxis, curve.log_y, axes.set_yscale)):
            if is_log:
                set_scale("log")
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(StrMethodFormatter("{x:g}"))  # the default one writes formulas, which SVG text cannot show
                axis.set_minor_formatter(NullFormatter())
        if curve.point_labels:
            axes.margins(0.12, 0.14)
        if len(curve.series) > 1:
            axes.legend(loc="best")
        for name, labels in curve.point_labels.items():
            for x, y, label in zip(*curve.series[name], labels, strict=True):
                axes.annotate(_short(label, 24), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=_LABEL)
        return _svg(canvas, f"{curve.title}: {curve.y_label} against {curve.x_label} for {', '.join(curve.series)}")


def histogram_svg(histogram: Histogram) -> str:
    """The histogram as one `<svg>` element: bars inside the band in colour, the others pale, both thresholds as lines."""
    with matplotlib.rc_context(_SETTINGS):
        canvas = Canvas(figsize=_SIZE, layout="constrained")
        axes = canvas.subplots()
        axes.grid(True, axis="y")
        edges, low, high = histogram.edges, histogram.low, histogram.high
        inside = [low <= (a + b) / 2 <= high for a, b in itertools.pairwise(edges)]
        widths = [b - a for a, b in itertools.pairwise(edges)]
        colours = [_COLOURS[0] if used else "#8e8e8e" for used in inside]
        bars = axes.bar(edges[:-1], histogram.counts, width=widths, align="edge", color=colours, linewidth=0)
        for bar, used in zip(bars, inside, strict=True):
            bar.set_alpha(1.0 if used else 0.45)
        for value, name in ((low, "low"), (high, "high")):
            axes.axvline(value, color=_COLOURS[1], linewidth=1.4, linestyle="--")
            axes.annotate(
                f"{name} {value:g}",
                (value, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
            )
        axes.set_xlabel(_short(histogram.x_label, 64))
        axes.set_ylabel("count")
        alt = f"{histogram.title}: {sum(histogram.counts)} values, {histogram.share_inside:.1%} between {low:g} and {high:g}"
        return _svg(canvas, alt)


def _bars(errors: Sequence[Number | None] | None) -> list[float] | None:
    return None if errors is None else [math.nan if error is None else float(error) for error in errors]


def _short(text: str, length: int = 40) -> str:
    """The text, cut where it would leave the chart no room; the words beside the chart hold the whole."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _page_font(found: re.Match[str]) -> str:
    return f"font-size: {found[2].strip()}; font-family: inherit" if found[2] else "font-family: inherit"


def _svg(canvas: Canvas, alt: str) -> str:
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)  # it would style the whole page
    text = re.sub(r"font(-family)?: ([^;\"]*px )?'DejaVu[^;\"]*", _page_font, text)
    # Several charts share one page, where ids must differ: name them by the chart's content.
    prefix = "c" + hashlib.sha256(f"{alt}{text}".encode()).hexdigest()[:8] + "-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{prefix}", text)
    text = re.sub(r'(<svg[^>]*?) width="[\d.]+pt"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", text, count=1)
    label = alt.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).strip()


@dataclass(frozen=True, kw_only=True)
class TradeOffPoint:
    """One w: quality and diversity of its samples, with their standard errors where they are known."""

    guidance: Number
    frechet: Number
    perceptual: Number
    frechet_error: Number | None = None
    perceptual_error: Number | None = None


@dataclass(frozen=True, kw_only=True)
class StepPoint:
    """One checkpoint of a run: its step, its Fréchet distance and the standard error where it is known."""

    step: int
    frechet: Number
    error: Number | None = None


def trade_off(
    series: Mapping[str, Sequence[TradeOffPoint]],
    *,
    frechet_name: str,
    perceptual_name: str,
    error_of: str = "",
    protocol: str | Protocol = "",
    title: str = "Quality against diversity",
) -> Curve:
    """Fig. 3: Fréchet distance to the right, perceptual distance to the condition upwards, one point per w, with error bars."""
    ordered = {name: sorted(points, key=lambda point: point.guidance) for name, points in series.items()}
    return Curve(
        title=title,
        x_label=frechet_name,
        y_label=perceptual_name,
        series={name: ([p.frechet for p in points], [p.perceptual for p in points]) for name, points in ordered.items()},
        point_labels={name: [f"w = {p.guidance:g}" for p in points] for name, points in ordered.items()},
        x_error=_known({name: [p.frechet_error for p in points] for name, points in ordered.items()}),
        y_error=_known({name: [p.perceptual_error for p in points] for name, points in ordered.items()}),
        error_of=error_of,
        protocol=protocol,
        caption="As Fig. 3 of the paper: left is nearer to real pictures, up is further from the conditioning image.",
    )


def frechet_by_step(
    series: Mapping[str, Sequence[StepPoint]],
    *,
    frechet_name: str,
    error_of: str = "",
    protocol: str | Protocol = "",
    title: str = "Fréchet distance against training steps",
) -> Curve:
    """Fig. 2: the Fréchet distance of several runs while they train."""
    ordered = {name: sorted(points, key=lambda point: point.step) for name, points in series.items()}
    return Curve(
        title=title,
        x_label="training steps",
        y_label=frechet_name,
        series={name: ([p.step for p in points], [p.frechet for p in points]) for name, points in ordered.items()},
        y_error=_known({name: [p.error for p in points] for name, points in ordered.items()}),
        error_of=error_of,
        protocol=protocol,
        caption="As Fig. 2 of the paper: lower is nearer to real pictures.",
    )


def _known(errors: Mapping[str, Sequence[Number | None]]) -> dict[str, Sequence[Number | None]]:
    return {name: values for name, values in errors.items() if any(value is not None for value in values)}
