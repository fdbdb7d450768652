"""The paper's figures as it prints them, and the verdict on whether ours may stand beside them."""

import dataclasses
import json

import pytest
from selectolax.lexbor import LexborHTMLParser

from semantica.errors import DataError
from semantica.report.page import Report, render, to_json
from semantica.report.paper import BEDROOM, CHURCH, IMAGENET, ORDERINGS, PAPER, SUN397, PaperRow, PaperTable
from semantica.report.written import Protocol

AS_THE_PAPER = Protocol(
    data=IMAGENET, resolution_px=256, num_samples=50_000, num_reference=50_000, extractor="inception", guidance=0.5, ema=True
)
KEY = "fid.semantica.imagenet.w0.5"


def row(**changes):
    return PaperRow(paper=KEY, value=6.4, protocol=dataclasses.replace(AS_THE_PAPER, **changes))


def test_the_papers_figures_stand_as_table_1_and_appendix_b_print_them():
    left = [
        [PAPER[f"fid.{model}.{data}.w{w}"].value for data in ("imagenet", "bedroom", "church", "sun397")]
        for w in ("0", "0.5")
        for model in ("label_grouped", "semantica")
    ]
    assert left == [[4.8, 46.2, 27.1, 29.7], [18.4, 6.2, 17.3, 6.7], [5.1, 34.2, 20.4, 22.4], [6.2, 2.4, 4.0, 2.5]]
    right = [
        [PAPER[f"one_shot.{key.format(data)}"].value for data in ("imagenet", "sun397")]
        for key in ("semantica.{}.w0", "semantica.{}.w0.5", "copy.{}")
    ]
    assert right == [[19.1, 9.5], [9.3, 7.1], [38.4, 70.6]]
    assert [PAPER[f"lpips.semantica.imagenet.w{w}"].written for w in ("0", "0.5")] == ["0.72", "0.68"]
    assert [PAPER[f"standard_error.{key}"].written for key in ("seeds", "conditions")] == ["9.4 ± 0.02", "9.5 ± 0.06"]
    assert PAPER["fid.semantica.church.w0.5"].written == "4.0"
    assert len(PAPER) == 16 + 2 + 6 + 2
    assert {figure.protocol.data for figure in PAPER.values()} == {IMAGENET, BEDROOM, CHURCH, SUN397}
    assert PAPER["one_shot.semantica.sun397.w0"].protocol.num_samples == 397 * 120
    assert all(figure.where for figure in PAPER.values())
    assert len({key for key, _, _ in ORDERINGS}) == len(ORDERINGS) == 11


def test_a_figure_made_as_the_papers_is_comparable():
    assert not row().is_apart
    assert row(extractor="inception-clean", num_steps=512, seeds=(1,)).verdict.startswith(
        "comparable"
    )  # the paper leaves these open


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"num_samples": 500}, "n = 500"),
        ({"num_samples": None}, "n not stated"),
        ({"num_reference": 20_000}, "20\u202f000 real pictures"),
        ({"data": SUN397}, "other data"),
        ({"data": ""}, "data not stated"),
        ({"resolution_px": 32}, "32 px"),
        ({"extractor": "dinov2"}, "dinov2"),
        ({"extractor": ""}, "extractor not stated"),
        ({"guidance": 1}, "w = 1"),
        ({"ema": False}, "raw weights"),
        ({"ema": None}, "weights not stated"),
        ({"num_samples": 500, "extractor": "encoder"}, "n = 500, encoder"),
    ],
)
def test_each_departure_from_the_papers_protocol_is_named(changes, verdict):
    assert row(**changes).verdict == f"not comparable: {verdict}"


def test_lpips_of_another_network_at_small_n_is_marked_as_the_page_shows_it():
    ours = dataclasses.replace(AS_THE_PAPER, num_samples=500, num_reference=None, extractor="st-lpips-alex")
    table = PaperTable(
        title="t", rows=[PaperRow(paper="lpips.semantica.imagenet.w0.5", value=0.31, standard_error=0.012, protocol=ours)]
    )
    report = Report(title="", summary=[], papers=[table])
    shown = LexborHTMLParser(render(report)).css_first("table.paper tbody tr")
    assert shown.css_first(".mark").text() == "not comparable: n\u00a0=\u00a0500, st-lpips-alex"
    assert [cell.text() for cell in shown.css("td.num")] == ["0.68", "0.310 ± 0.012"]
    assert "Fig. 3" in shown.css_first("th").text()
    stored = json.loads(json.dumps(to_json(report), allow_nan=False))["papers"][0]["rows"][0]
    assert (stored["paper"], stored["ours"], stored["ours_standard_error"]) == (0.68, 0.31, 0.012)
    assert stored["differences"] == ["n = 500", "st-lpips-alex"]
    assert stored["settings"]["num_samples"] == 500


def test_copy_has_neither_w_nor_weights_to_differ_in():
    ours = dataclasses.replace(AS_THE_PAPER, guidance=None, ema=None)
    assert not PaperRow(paper="one_shot.copy.imagenet", value=40.0, protocol=ours).is_apart


def test_a_row_without_a_value_says_why_and_a_key_must_be_the_papers():
    assert PaperRow(paper=KEY, missing="no pictures").verdict == ""
    with pytest.raises(DataError, match="has no value; say why"):
        PaperRow(paper=KEY)
    with pytest.raises(
        DataError, match=r"expected a key of PAPER, got 'fid\.mine'; the keys are fid\.label_grouped\.imagenet\.w0,"
    ):
        PaperRow(paper="fid.mine", value=1.0)


def test_a_protocol_says_what_was_stated_and_nothing_else():
    assert Protocol().sentence == ""
    assert Protocol(num_samples=50_000, ema=False, seeds=(3,)).sentence == "n = 50\u202f000; raw weights; seed 3"
    assert Protocol(seeds=(2, 0, 1), error_of="3 seeds").sentence == "seeds 0 to 2; ± over 3 seeds"
    assert Protocol(seeds=(5, 1)).sentence == "seeds 1, 5"
    assert Protocol(seeds=tuple(range(0, 40, 2))).sentence == "20 seeds, 0 to 38"
    assert Protocol(guidance=0, num_steps=512, resize="clean-fid", more="one shot").sentence == (
        "resize clean-fid; 512 steps; w = 0; one shot"
    )
    assert (Protocol(num_samples=2047).is_small, Protocol(num_samples=2048).is_small, Protocol().is_small) == (True, False, False)
