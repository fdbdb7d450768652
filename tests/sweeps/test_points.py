"""The points of a trial: a figure on disk is not measured again, and only the last point's is the final one."""

from dataclasses import replace

import pytest

from semantica.presets import preset
from semantica.sweeps.points import FRECHET, PointMeter, Points, tune_values
from semantica.sweeps.results import Figure, figure_path, keep_figure
from semantica.sweeps.settings import MeasureConfig

FIGURE = Figure(
    point=1, step=3, frechet=2.5, num_samples=4, num_reference=8, extractor="encoder", seconds=None, measuring_seconds=1.0
)


@pytest.fixture
def points(tmp_path):
    """Two points, with nothing there to measure by."""
    nowhere = tmp_path / "nowhere"
    return Points(tmp_path / "trial", (3, 6), MeasureConfig(num_points=2), nowhere, nowhere, measured_by=nowhere)


def test_a_figure_on_disk_is_given_again_and_one_that_is_not_is_measured(points):
    meter = PointMeter(points, preset("tiny").train, points.folder, None, "cpu", is_new=True)
    assert points.read_figure(3) is None
    keep_figure(points.folder, FIGURE)
    figure_path(points.folder, 1).with_suffix(".png").write_bytes(b"a picture")
    assert points.read_figure(3) == FIGURE
    assert meter.figure(3, {}) == FIGURE
    assert points.picture(FIGURE) == b"a picture"
    with pytest.raises(FileNotFoundError, match="nowhere"):  # what it would be measured by
        meter.figure(6, {})


def test_only_the_figure_of_the_last_point_is_reported_as_the_final_one():
    assert tune_values(FIGURE, 2) == {FRECHET: 2.5, "point": 1}
    assert tune_values(replace(FIGURE, point=2), 2) == {FRECHET: 2.5, "point": 2, "frechet_final": 2.5}
