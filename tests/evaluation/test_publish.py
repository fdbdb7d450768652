"""What is written when the drawing and the measuring are done."""

import json

import numpy as np
import pytest

from semantica.distributed.evaluate import _publish
from semantica.errors import DataError
from semantica.report.gallery import Example, Gallery
from semantica.report.page import Figure, Report
from semantica.tracking import Run


def test_figures_are_written_even_when_the_pictures_do_not_fit_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr("semantica.report.page.MAX_PICTURE_BYTES", 100)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    gallery = Gallery(title="g", examples=[Example(condition=picture, samples=[picture])])
    report = Report(title="", summary=[], figures=[Figure(name="fid", value=7.5)], galleries=[gallery])
    with pytest.raises(DataError, match="show fewer examples"):
        _publish(report, tmp_path, Run())
    assert json.loads((tmp_path / "report.json").read_text())["fid"] == 7.5
