"""What the whole page holds, whoever reads it: every number is in report.json, every text is escaped, its size is bounded."""

import json
import re

import numpy as np
import pytest
from selectolax.lexbor import LexborHTMLParser

from semantica.errors import DataError
from semantica.report.page import MAX_OPEN_FIGURES, Figure, Report, Table, render, to_json
from semantica.report.pictures import Example, Gallery
from semantica.report.written import number, uncertain

EVIL = "<img src=x onerror=alert(1)>\"'&</style></svg>{{ 7 * 7 }}"
NUMBER = re.compile(r"-?\d[\d\u202f]*(?:\.\d+)?(?:e[+-]?\d+)?")


def numbers_and_texts(value):
    if isinstance(value, dict):
        value = list(value.values()) + list(value)
    if isinstance(value, list):
        found = [numbers_and_texts(item) for item in value]
        return [n for ns, _ in found for n in ns], [t for _, ts in found for t in ts]
    if isinstance(value, str):
        return [], [value]
    return ([value], []) if isinstance(value, (int, float)) and not isinstance(value, bool) else ([], [])


def test_every_number_on_the_page_is_in_report_json(paper_report):
    report = paper_report("plain")
    stored, texts = numbers_and_texts(json.loads(json.dumps(to_json(report), allow_nan=False)))
    written = {token for text in texts for token in NUMBER.findall(text)}
    tree = LexborHTMLParser(render(report))
    # The ticks of an axis and the bytes of the pictures are no figures.
    for node in tree.css("svg, .bytes, head, footer"):
        node.decompose()
    shown = NUMBER.findall(tree.body.text(separator=" "))
    assert len(shown) > 200
    for token in shown:
        digits = len(token.partition(".")[2]) if "e" not in token else None
        plain = token.replace("\u202f", "")
        near = {f"{scale * x:.{digits}f}" if digits is not None else f"{x:.4g}" for x in stored for scale in (1, 100)}
        assert token in written or plain in near, token


def test_a_hostile_text_stays_text_everywhere(paper_report):
    page = render(paper_report(EVIL))
    tree = LexborHTMLParser(page)
    assert EVIL not in page
    assert len(tree.css("style")) == 1
    assert not tree.css("script, [onerror], main style, iframe, object")
    assert all(node.attributes["src"].startswith("data:image/") for node in tree.css("img"))
    assert len(tree.css("svg")) == 4
    for selector in ("h1", "h3", "legend", "figcaption", ".samples th span", ".card b", ".paper td", ".figures td", "dd", "pre"):
        assert any(EVIL in node.text() for node in tree.css(selector)), selector
    assert any(EVIL in node.attributes["alt"] for node in tree.css("img"))
    assert any(EVIL in node.attributes["aria-label"] for node in tree.css("input"))
    assert EVIL in json.loads(json.dumps(to_json(paper_report(EVIL))))["figures"][0]["explanation"]


def test_every_picture_has_words_every_table_headers_every_control_a_name(paper_report):
    tree = LexborHTMLParser(render(paper_report("plain")))
    assert len(tree.css("img")) > 80
    assert all((node.attributes.get("alt") or "").strip() for node in tree.css("img"))
    assert all(node.attributes["role"] == "img" and node.attributes["aria-label"] for node in tree.css("svg"))
    assert all(table.css("thead th[scope=col]") for table in tree.css("table"))
    for node in tree.css("input, [role=region], nav"):
        assert (node.attributes.get("aria-label") or "").strip()
    assert tree.css_first("body > a").attributes["href"] == "#figures"  # the skip link is the first stop
    assert not tree.css("[tabindex]:not([tabindex='0'])")


def test_a_value_that_is_missing_is_a_dash_with_its_reason(paper_report):
    tree = LexborHTMLParser(render(paper_report("plain")))
    rows = {row.css_first("th").text(): row for row in tree.css("table.figures tbody tr")}
    assert rows["fd_dinov2"].css_first("td.num").text() == "–"
    assert "no weights plain" in rows["fd_dinov2"].text()
    bedroom = next(row for row in tree.css("table.paper tbody tr") if "Bedroom" in row.text())
    assert [cell.text() for cell in bedroom.css("td.num")] == ["6.2", "–"]
    assert "no pictures plain" in bedroom.text()
    assert any(note.text() == "–: KID needs 1000 samples" for note in tree.css(".note"))
    assert tree.css_first("td.none").text().split() == ["–", "no", "sample"]


def test_a_number_and_its_standard_error_end_at_the_same_digit():
    assert uncertain(344.38, 4.21) == "344.4 ± 4.2"
    assert uncertain(0.41234, 0.0123) == "0.412 ± 0.012"
    assert uncertain(0.5, 0.0996) == "0.50 ± 0.10"
    assert uncertain(12345.6, 123.4) == "12\u202f346 ± 123"
    assert uncertain(5.0, 0.0) == "5 ± 0"
    assert uncertain(1e-9, 1e-10) == "1e-09 ± 1e-10"
    assert uncertain(None, 0.1) == "–"
    assert uncertain(1.5, None) == "1.5"
    assert uncertain(2.5, float("nan")) == "2.5"
    assert uncertain(-0.25, 0.031) == "-0.250 ± 0.031"
    assert [number(v) for v in (0, 9999, 10000, -12345, 0.12345, True, np.float32(2.5))] == [
        "0",
        "9999",
        "10\u202f000",
        "-12\u202f345",
        "0.1235",
        "True",
        "2.5",
    ]


def test_errors_of_a_table_stand_with_their_cells_and_must_have_its_shape():
    table = Table(title="t", columns=["a"], rows=[[1.25], [None]], errors=[[0.5], [None]])
    cells = [cell.text() for cell in LexborHTMLParser(render(Report(title="", summary=[], tables=[table]))).css("td")]
    assert cells == ["1.25 ± 0.50", "–"]
    with pytest.raises(DataError, match="expected 2 rows of errors or none, got 1"):
        Table(title="t", columns=["a"], rows=[[1], [2]], errors=[[0.5]])


def test_small_n_is_marked_where_it_stands_and_explained_once(paper_report):
    tree = LexborHTMLParser(render(paper_report("plain")))
    fid = next(row for row in tree.css("table.figures tbody tr") if row.css_first("th").text() == "fid")
    assert fid.css_first(".mark").text() == "small n"
    assert (
        "n\u00a0=\u00a0500 against 480; inception; resize torch-fidelity; 48 steps; w\u00a0=\u00a00.5; EMA weights; seeds 0 to 2"
        in fid.text()
    )
    assert sum("Small n" in note.text() for note in tree.css(".note")) == 1
    assert "Small n" not in render(Report(title="", summary=[], figures=[Figure(name="a", value=1, protocol="n = 5")]))


def test_a_long_list_of_figures_is_folded_behind_the_tables_which_are_skipped_to():
    table = Table(title="t", columns=["a"], rows=[[1]])
    figures = [Figure(name=f"figure {i}", value=i) for i in range(MAX_OPEN_FIGURES + 1)]
    short = LexborHTMLParser(render(Report(title="", summary=[], figures=figures[1:], tables=[table])))
    long = LexborHTMLParser(render(Report(title="", summary=[], figures=figures, tables=[table])))
    assert [h.text() for h in short.css("h2")] == ["Figures", "Tables", "Protocol"]
    assert [h.text() for h in long.css("h2")] == ["Tables", "Figures", "Protocol"]
    assert (len(short.css("details .figures")), len(long.css("details .figures"))) == (0, 1)
    assert len(long.css("table.figures tbody tr")) == len(figures)
    assert [tree.css_first("body > a").attributes["href"] for tree in (short, long)] == ["#figures", "#tables"]
    bare = LexborHTMLParser(render(Report(title="", summary=[], figures=figures)))  # nothing else says them
    assert not bare.css("details .figures")


def test_large_pictures_are_reduced_and_the_page_says_how_and_how_large_it_is():
    noise = np.random.default_rng(0).integers(0, 256, (24, 320, 320, 3), dtype=np.uint8)
    examples = [Example(condition=a, samples=[b]) for a, b in zip(noise[::2], noise[1::2], strict=True)]
    page = render(Report(title="", summary=[], galleries=[Gallery(title="g", examples=examples)]))
    stated = re.search(r"24 pictures, ([\d.]+) (MB|kB); those above 64 px as JPEG of quality 85, at most 256 px", page)
    assert stated is not None
    assert f"One page of {len(page.encode()) / 1e6:.1f} MB" in page
