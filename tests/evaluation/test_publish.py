"""What is written when the drawing and the measuring are done."""

import json

import pytest

from semantica.distributed.evaluate import publish
from semantica.errors import DataError
from semantica.report.page import Figure, Report
from semantica.report.pictures import Grid
from semantica.tracking import Run


def test_figures_are_written_even_when_the_page_cannot_be(tmp_path):
    report = Report(title="", summary=[], figures=[Figure(name="fid", value=7.5)], grids=[Grid(title="g", png=b"", alt="")])
    with pytest.raises(DataError, match="expected a grid as PNG"):
        publish(report, tmp_path, Run())
    assert json.loads((tmp_path / "report.json").read_text())["fid"] == 7.5
