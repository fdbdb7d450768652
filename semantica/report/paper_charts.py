"""The paper's exhibits from numbers and pictures: trade-off (Fig. 3), ablations over training (Fig. 2), grids (Fig. 1, 4, 5).

In come figures that were computed elsewhere and uint8 pictures; out come the curves and grids of the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from semantica.errors import DataError
from semantica.report.charts import Curve
from semantica.report.gallery import Grid, Picture
from semantica.report.grids import grid_png
from semantica.report.protocol import Protocol
from semantica.report.written import Number


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
    """Fig. 3: Fréchet distance to the right, perceptual distance to the condition upwards, one point a w, error bars both ways."""
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


def samples_grid(
    conditions: Sequence[Picture],
    samples: Sequence[Sequence[Picture | None]],
    *,
    guidance: Number,
    row_labels: Sequence[str] = (),
    protocol: str | Protocol = "",
    title: str = "Samples",
) -> Grid:
    """Fig. 1: a row a conditioning image, left itself, right its samples at one w."""
    _check(title, conditions, samples, row_labels)
    width = len(samples[0])
    return _grid(
        title,
        conditions,
        samples,
        [f"sample {index}" for index in range(1, width + 1)],
        row_labels,
        protocol,
        alt=f"{len(conditions)} rows: a conditioning image, then {width} samples at guidance w = {guidance:g}",
        caption=f"Left: a conditioning image. Right: {width} samples at w = {guidance:g} (the paper, Fig. 1).",
    )


def guidance_grid(
    conditions: Sequence[Picture],
    samples: Sequence[Sequence[Picture | None]],
    *,
    weights: Sequence[Number],
    row_labels: Sequence[str] = (),
    protocol: str | Protocol = "",
    title: str = "Samples against guidance",
) -> Grid:
    """Fig. 4 and 5: a row a conditioning image, left itself, right one sample at each w, all from the same noise."""
    _check(title, conditions, samples, row_labels)
    return _grid(
        title,
        conditions,
        samples,
        [f"w = {w:g}" for w in weights],
        row_labels,
        protocol,
        alt=f"{len(conditions)} rows: a conditioning image, then one sample at each of {len(weights)} guidance weights",
        caption="Left: a conditioning image. Right: one sample at each w, from the same noise (the paper, Fig. 4 and 5).",
    )


def _grid(
    title: str,
    conditions: Sequence[Picture],
    samples: Sequence[Sequence[Picture | None]],
    columns: Sequence[str],
    row_labels: Sequence[str],
    protocol: str | Protocol,
    *,
    alt: str,
    caption: str,
) -> Grid:
    rows = [[condition, *drawn] for condition, drawn in zip(conditions, samples, strict=True)]
    labels = ["condition", *columns]
    return Grid(
        title=title,
        png=grid_png(rows, labels, row_labels),
        alt=alt,
        caption=caption,
        protocol=protocol,
        rows=rows,
        column_labels=labels,
        row_labels=row_labels,
    )


def _check(
    title: str, conditions: Sequence[Picture], samples: Sequence[Sequence[Picture | None]], row_labels: Sequence[str]
) -> None:
    if not conditions or len(samples) != len(conditions) or (row_labels and len(row_labels) != len(conditions)):
        raise DataError(
            f"grid {title!r}: expected conditioning images, as many rows of samples and as many labels or none, "
            f"got {len(conditions)}, {len(samples)} and {len(row_labels)}"
        )


def _known(errors: Mapping[str, Sequence[Number | None]]) -> dict[str, Sequence[Number | None]]:
    return {name: values for name, values in errors.items() if any(value is not None for value in values)}
