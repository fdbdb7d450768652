"""Charts: error bars in both directions, colours that are seen on both pages and never alone."""

import re

import pytest

from semantica.errors import DataError
from semantica.report.charts import Curve, StepPoint, TradeOffPoint, curve_svg, frechet_by_step, trade_off

PAPERS = {"light": "#ffffff", "dark": "#15171a"}


def contrast(one, other):
    """WCAG 2.2: (L1 + 0.05) / (L2 + 0.05) of the relative luminances."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def points(**errors):
    return [TradeOffPoint(guidance=w, frechet=20 - 10 * w, perceptual=0.7 - 0.1 * w, **errors) for w in (0.5, 0, 1)]


def strokes(svg, colour):
    """The straight strokes of that colour, as (x1, y1, x2, y2), the line through the points left out."""
    found = re.findall(r'<path d="M ([\d.-]+) ([\d.-]+) \nL ([\d.-]+) ([\d.-]+) \n"[^>]*stroke: ' + colour, svg)
    return [tuple(map(float, stroke)) for stroke in found]


def test_a_trade_off_has_error_bars_both_ways_in_proportion_to_the_errors():
    svg = curve_svg(
        Curve(
            title="t", x_label="x", y_label="y", series={"a": ([0, 10], [0, 10])}, x_error={"a": [1, 3]}, y_error={"a": [2, None]}
        )
    )
    bars = strokes(svg, "#3f86c9")
    across = [x2 - x1 for x1, y1, x2, y2 in bars if y1 == y2]
    upwards = [y1 - y2 for x1, y1, x2, y2 in bars if x1 == x2]
    assert len(across) == 2
    assert across[1] / across[0] == pytest.approx(3, rel=1e-4)
    assert len(upwards) == 1  # None draws no bar


def test_a_trade_off_goes_in_the_order_of_w_and_says_which_point_is_which():
    curve = trade_off({"a": points(frechet_error=0.5)}, frechet_name="FID", perceptual_name="LPIPS")
    assert curve.series["a"] == ([20, 15, 10], [0.7, 0.7 - 0.05, 0.6])
    assert curve.point_labels["a"] == ["w = 0", "w = 0.5", "w = 1"]
    assert curve.x_error == {"a": [0.5] * 3}
    assert curve.y_error == {}
    svg = curve_svg(curve)
    assert all(f">w = {w}<" in svg for w in ("0", "0.5", "1"))


def test_runs_over_training_steps_differ_in_dash_and_marker_too():
    runs = {name: [StepPoint(step=s, frechet=add + s) for s in (2, 1)] for add, name in enumerate("abcdef")}
    curve = frechet_by_step(runs, frechet_name="FID")
    assert curve.series["a"] == ([1, 2], [1, 2])
    svg = curve_svg(curve)
    colours = set(re.findall(r"stroke: (#[0-9a-f]{6}); stroke-width: 1.6", svg))
    dashes = set(re.findall(r"stroke-dasharray: ([^;]+); stroke-dashoffset: 0; stroke: #[0-9a-f]{6}; stroke-width: 1.6", svg))
    assert len(colours) == 6
    assert len(dashes) == 5  # and one line without
    markers = set(re.findall(r'<path id="[^"]*" d="(M[^"]*)" style="stroke: #[0-9a-f]{6}[;"]', svg))
    assert len(markers) == 6


def test_every_line_is_seen_on_the_light_and_on_the_dark_page():
    svg = curve_svg(Curve(title="t", x_label="x", y_label="y", series={n: ([0, 1], [0, i]) for i, n in enumerate("abcdef")}))
    colours = set(re.findall(r"stroke: (#[0-9a-f]{6})", svg))
    assert len(colours) == 6
    assert min(contrast(colour, paper) for colour in colours for paper in PAPERS.values()) >= 3  # WCAG 1.4.11, graphics


def test_errors_that_do_not_fit_the_points_are_refused():
    line = {"title": "c", "x_label": "", "y_label": "", "series": {"a": ([1, 2], [1, 2])}}
    with pytest.raises(DataError, match="expected 2 numbers of at least 0 in x_error of 'a', got "):
        Curve(**line, x_error={"a": [1]})
    with pytest.raises(DataError, match="in y_error of 'a'"):
        Curve(**line, y_error={"a": [1, -1]})
    with pytest.raises(DataError, match="expected 0 numbers of at least 0 in y_error of 'b'"):
        Curve(**line, y_error={"b": [1, 1]})


def test_a_long_name_leaves_the_chart_its_room():
    name = "a very long name of a series or of an axis, with no end " * 3
    svg = curve_svg(Curve(title=name, x_label=name, y_label=name, series={name: ([1, 2], [1, 2]), "b": ([1], [1])}))
    assert name in svg  # in the words
    assert all(len(text) <= 40 for text in re.findall(r">([^<>\n]+)</text>", svg))
