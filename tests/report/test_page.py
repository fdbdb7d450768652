import itertools
import json
import re

import numpy as np
import pytest
from selectolax.lexbor import LexborHTMLParser

from semantica.errors import DataError
from semantica.report.charts import Curve, Histogram, curve_svg, histogram_svg
from semantica.report.page import Figure, Grid, Report, Table, render, to_json
from semantica.report.pictures import sheet_png

EVIL = '<script>alert("x")</script> & <b>'


def full_report(text="plain"):
    png = sheet_png([np.zeros((32, 32, 3), np.uint8)])
    return Report(
        title=f"Report {text}",
        summary=[f"Samples look like their condition {text}"],
        figures=[
            Figure(name="own_similarity", value=0.41234, standard_error=0.0123, explanation=text, protocol=text),
            Figure(name="frechet_distance", value=48.2131, unit=text, explanation="lower is better", protocol="n = 768"),
            Figure(name="num_pairs", value=1234567),
            Figure(name="not_measured", value=None),
            Figure(name="broken", value=float("nan")),
        ],
        grids=[Grid(title=text, png=png, alt=f"one black square {text}", caption=text)],
        curves=[
            Curve(title=text, x_label=text, y_label="$loss", series={text: ([1, 2], [0.5, 0.1]), "b": ([1], [2])}, log_y=True),
            Curve(title="w", x_label="x", y_label="y", series={"a": ([1, 2], [3, 4])}, point_labels={"a": [text, "w = 1"]}),
        ],
        histograms=[
            Histogram(
                title=text, x_label=text, edges=[0, 0.5, 1], counts=[3, 1], low=0.3, high=0.9, share_inside=0.25, caption=text
            )
        ],
        tables=[Table(title=text, columns=["reason", "rows"], rows=[[text, 12], ["too-small", 3]], caption=text)],
        provenance=[(text, "https://pictures.example.org/augly/", "CC-BY-4.0"), ("x", "javascript:alert(1)", text)],
        protocol={"n": 768, "extractor": text},
        config_yaml=f"train: {text}\n",
        versions={"torch": "2.9"},
        commit="abc1234",
        date="2025-11-21",
        command=f"semantica evaluate {text}",
    )


def test_the_page_shows_every_figure_with_its_uncertainty():
    tree = LexborHTMLParser(render(full_report()))
    rows = {row.css_first("th").text(): row.css_first("td").text() for row in tree.css("table.figures tbody tr")}
    assert rows == {
        "own_similarity": "0.412 ± 0.012",
        "frechet_distance": "48.21",
        "num_pairs": "1\u202f234\u202f567",
        "not_measured": "–",
        "broken": "nan",
    }


def test_every_text_is_escaped():
    page = render(full_report(EVIL))
    tree = LexborHTMLParser(page)
    assert not tree.css("script")
    assert not tree.css("main b")
    assert EVIL not in page
    assert EVIL in tree.css_first("h1").text()
    assert EVIL in tree.css_first("pre").text()
    assert EVIL in tree.css_first("img").attributes["alt"]
    assert any(EVIL in svg.attributes["aria-label"] for svg in tree.css("svg"))


def test_the_page_asks_nothing_of_any_other_host():
    page = render(full_report())
    tree = LexborHTMLParser(page)
    for node in tree.css("[src], [srcset], [data], [poster], [xlink\\:href], link[href], use, image"):
        for name in ("src", "srcset", "data", "poster", "xlink:href", "href"):
            value = node.attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (node.tag, name, value)
    assert not re.findall(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in tree.css_first("meta[http-equiv]").attributes["content"]
    assert [a.attributes["href"] for a in tree.css("a") if not a.attributes["href"].startswith("#")] == [
        "https://pictures.example.org/augly/"
    ]


def test_ids_are_unique_and_every_reference_finds_its_target():
    page = render(full_report())
    ids = [node.attributes["id"] for node in LexborHTMLParser(page).css("[id]")]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_tags_are_balanced_and_headings_descend_one_level_at_a_time():
    page = render(full_report())
    for tag in ("section", "div", "table", "tr", "td", "th", "figure", "details", "svg", "dl", "main", "ul"):
        assert len(re.findall(rf"<{tag}[\s>]", page)) == page.count(f"</{tag}>"), tag
    levels = [int(node.tag[1]) for node in LexborHTMLParser(page).css("h1, h2, h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_an_empty_report_renders():
    tree = LexborHTMLParser(render(Report(title="Nothing yet", summary=["No stage has run."])))
    assert "No figure was computed" in tree.css_first("main").text()
    assert not tree.css("#pictures, #charts, #tables, #provenance")


def test_the_same_report_gives_the_same_bytes():
    assert render(full_report()) == render(full_report())


def test_charts_take_the_pages_colour_and_draw_both_thresholds():
    report = full_report()
    svg = histogram_svg(report.histograms[0])
    assert "currentColor" in svg
    assert "low 0.3" in svg
    assert "high 0.9" in svg
    assert "<style" not in svg
    curve = curve_svg(report.curves[0])
    assert "mathdefault" not in curve  # log ticks as plain numbers
    assert "DejaVu" not in curve


def test_report_json_holds_every_figure_by_name_and_is_strict_json():
    values = to_json(full_report())
    text = json.dumps(values, allow_nan=False)
    assert json.loads(text) == values
    assert values["own_similarity"] == 0.41234
    assert values["num_pairs"] == 1234567
    assert values["broken"] is None
    assert values["protocol"] == {"n": 768, "extractor": "plain"}
    assert values["tables"][0]["rows"] == [["plain", 12], ["too-small", 3]]
    assert values["figures"][0]["standard_error"] == 0.0123
    assert values["versions"] == {"torch": "2.9"}
    assert values["commit"] == "abc1234"


def test_figure_names_that_would_hide_another_key_are_refused():
    with pytest.raises(DataError, match="got own, protocol"):
        Report(title="", summary=[], figures=[Figure(name=name, value=1) for name in ("own", "own", "protocol")])


def test_ragged_tables_curves_and_histograms_are_refused():
    with pytest.raises(DataError, match="expected 2 cells per row, got 1"):
        Table(title="t", columns=["a", "b"], rows=[[1]])
    with pytest.raises(DataError, match="as many ys as xs"):
        Curve(title="c", x_label="", y_label="", series={"a": ([1], [1, 2])})
    with pytest.raises(DataError, match="expected 3 edges, got 2"):
        Histogram(title="h", x_label="", edges=[0, 1], counts=[1, 2], low=0, high=1, share_inside=1)
    with pytest.raises(DataError, match="grid as PNG"):
        render(Report(title="", summary=[], grids=[Grid(title="g", png=b"GIF89a", alt="")]))
