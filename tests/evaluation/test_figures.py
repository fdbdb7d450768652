"""From features by name to figures: closed forms, names instead of places, and standard errors over seeds and conditioning sets."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from semantica.data.dataset import StageOutput
from semantica.data.schemas import DISTANCES, FEATURES
from semantica.errors import DataError
from semantica.evaluation.features import Features
from semantica.evaluation.figures import CellFigures, Measurer, estimate
from semantica.evaluation.measuring import Measured, distance_rows, feature_rows
from semantica.evaluation.requests import Cell, repeated, requests_of
from semantica.evaluation.settings import EvaluationConfig
from semantica.measure.frechet import FeatureStatistics, frechet_distance
from semantica.measure.networks.extractors import ExtractorIdentity, FeatureExtractor, PerceptualNet

SIZES = {"cats": 6, "dogs": 6, "pond": 6}
DIM = 4


def write(folder, shards):
    """A features dataset: column -> name -> vector or number, in the given shards."""
    stage = StageOutput(folder, "features", {})
    assert stage.open() is None
    for index, columns in enumerate(shards):
        tables = {}
        for column, values in columns.items():
            kind, name = (DISTANCES, "distance") if column.startswith("lpips") else (FEATURES, "features")
            rows = [{"name": key, name: value} for key, value in values.items()]
            tables[column] = pa.Table.from_pylist(rows, schema=kind)
        stage.write_shard(f"shard-{index}", tables, {})
    stage.finish({}, {})
    return Features.open(folder, {"encoder": "encoder-1", "lpips-alex": "lpips-1"})


def settings(**values):
    base = {"num": 12, "num_copies": 2, "extractor": ("encoder",), "perceptual": ("lpips-alex",)}
    return EvaluationConfig(**(base | values))


@pytest.fixture
def measured(a_set, tmp_path):
    """(set, requests, real features, drawn features, Features in one shard, the same in three with repeats)."""
    data = a_set(SIZES)
    requests = requests_of(Cell("m", "set", "pictures", 0.5), "abc", data, settings())
    generator = np.random.default_rng(0)
    real = {name: generator.standard_normal(DIM).astype(np.float32) + 2 for name in data.pictures}
    drawn = {r.name: generator.standard_normal(DIM).astype(np.float32) + 1 for r in requests}
    distance = {r.name: i for i, r in enumerate(requests)}
    one = write(tmp_path / "one", [{"encoder-1": real | drawn, "lpips-1": distance}])
    names = list(drawn)
    parts = [
        {"encoder-1": {n: drawn[n] for n in names[::-1][:7]}, "lpips-1": {n: distance[n] for n in names[:3]}},
        {"encoder-1": real},
        {"encoder-1": {n: drawn[n] for n in names[:8]}, "lpips-1": {n: distance[n] for n in names[::-1]}},
    ]
    return SimpleNamespace(data=data, requests=requests, real=real, drawn=drawn, one=one, many=write(tmp_path / "many", parts))


CELL = Cell("m", "set", "pictures", 0.5)


def measure(measured, features, cell=CELL, **values):
    measurer = Measurer(settings(**values), {"set": features}, {"set": measured.data})
    networks = (*measurer.settings.extractor, *measurer.settings.perceptual)
    return measurer.measure(cell, measured.requests if cell.is_drawn else [], networks)


def test_the_figures_of_a_cell_are_those_of_its_features(measured):
    found = measure(measured, measured.one)
    real = FeatureStatistics.of(np.stack([measured.real[n] for n in sorted(measured.real)]))
    drawn = FeatureStatistics.of(np.stack([measured.drawn[r.name] for r in measured.requests]))
    assert found.frechet == {"encoder": pytest.approx(frechet_distance(drawn, real), rel=1e-9)}
    assert found.perceptual == {"lpips-alex": pytest.approx(5.5)}
    assert (found.num_samples, found.num_conditions, found.num_reference) == (12, 12, 18)
    own = [np.dot(measured.drawn[r.name], measured.real[r.image_id]) for r in measured.requests]
    lengths = [np.linalg.norm(measured.drawn[r.name]) * np.linalg.norm(measured.real[r.image_id]) for r in measured.requests]
    assert found.similarity.own == pytest.approx(np.mean(np.array(own) / np.array(lengths)), rel=1e-5)


def test_a_picture_that_was_measured_twice_and_in_another_order_changes_no_bit(measured):
    one, many = (measure(measured, features) for features in (measured.one, measured.many))
    assert one.frechet == many.frechet
    assert one.perceptual == many.perceptual
    assert one.similarity.own == many.similarity.own


def test_copy_is_the_conditioning_image_of_each_class_as_often_as_it_would_be_sampled(measured):
    found = measure(measured, measured.one, Cell("", "set", "copy"))
    chosen = [picture.image_id for picture, _ in measured.data.one_a_class(2, 0)]
    copies = FeatureStatistics.of(np.stack([measured.real[n] for n in chosen]))
    real = FeatureStatistics.of(np.stack([measured.real[n] for n in sorted(measured.real)]))
    assert found.frechet == {"encoder": pytest.approx(frechet_distance(copies, real), rel=1e-9)}
    assert (found.num_samples, found.num_conditions) == (6, 3)
    assert (found.perceptual, found.similarity) == ({}, None)


def test_the_reference_may_be_the_pictures_that_are_no_conditioning_images(measured):
    others = sorted(set(measured.real) - {r.image_id for r in measured.requests})
    real = FeatureStatistics.of(np.stack([measured.real[n] for n in others]))
    drawn = FeatureStatistics.of(np.stack([measured.drawn[r.name] for r in measured.requests]))
    found = measure(measured, measured.one, reference="others")
    assert found.num_reference == 6
    assert found.frechet["encoder"] == pytest.approx(frechet_distance(drawn, real), rel=1e-9)


def test_what_was_not_measured_is_named(measured):
    with pytest.raises(DataError, match="no features by encoder of 1 pictures, the first is nobody; run the same command again"):
        measured.one.matrix("encoder", ["nobody"])


def test_standard_errors_are_over_seeds_and_over_conditioning_sets():
    chosen = settings(num_seeds=3, num_condition_sets=2)
    cell = Cell("m", "set", "pictures", 0.5)
    values = dict(zip(repeated(cell, chosen), (1.0, 2.0, 9.0, 5.0), strict=True))
    results = {c: CellFigures(9, 9, 9, {"encoder": v}, {}, None) for c, v in values.items()}
    found = estimate(cell, results, chosen, lambda figures: figures.frechet["encoder"])
    assert found.value == 4.0  # of the three seeds on one set
    assert found.over_seeds == pytest.approx(np.std([1, 2, 9], ddof=1) / np.sqrt(3))
    assert found.mean_over_conditions == 3.0  # of 1 and 5: the two sets at the first seed
    assert found.over_conditions == pytest.approx(np.std([1, 5], ddof=1) / np.sqrt(2))
    assert (found.num_seeds, found.num_condition_sets) == (3, 2)
    alone = estimate(cell, {cell: results[cell]}, settings(), lambda figures: figures.frechet["encoder"])
    assert (alone.value, alone.over_seeds, alone.over_conditions) == (1.0, None, None)


def test_a_feature_that_is_not_finite_is_refused_by_the_name_of_its_picture():
    identity = ExtractorIdentity("encoder", "numbers", "FD", "0" * 64, "none", 2)
    network = FeatureExtractor(identity, lambda x: x.float(), lambda x: (1 / x[:, 0, 0, :2]).log().cos(), "cpu", 4)
    pictures = [Measured(f"p{i}", torch.full((3, 2, 2), i, dtype=torch.uint8)) for i in (2, 0, 1)]
    with pytest.raises(DataError, match="numbers gives NaN or infinity for p0; look at that picture"):
        feature_rows(network, pictures)
    table = feature_rows(network, pictures[::2])
    assert (table.schema, table["name"].to_pylist()) == (FEATURES, ["p2", "p1"])
    np.testing.assert_allclose(table["features"].to_pylist(), np.cos(np.log([[0.5] * 2, [1.0] * 2])), rtol=1e-6)
    assert feature_rows(network, []).num_rows == 0


def test_a_perceptual_distance_is_that_of_a_sample_and_its_own_condition():
    net = torch.nn.Module()
    net.min_px = 1
    net.forward = lambda a, b: (a - b).abs().mean(dim=(1, 2, 3))
    identity = ExtractorIdentity("lpips-alex", "difference", "LPIPS", "0" * 64, "none", 0)
    black, white = torch.zeros((3, 32, 32), dtype=torch.uint8), torch.full((3, 32, 32), 255, dtype=torch.uint8)
    pictures = [Measured("same", black, black), Measured("real", white), Measured("other", white, black)]
    table = distance_rows(PerceptualNet(identity, net, "cpu", 2), pictures)
    assert table.schema == DISTANCES
    assert table.to_pylist() == [{"name": "same", "distance": 0.0}, {"name": "other", "distance": 2.0}]
    assert distance_rows(PerceptualNet(identity, net, "cpu", 2), pictures[1:2]).num_rows == 0
