"""The protocol `details`: each figure is that of its metric on the features that the names stand for."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from semantica.data.dataset import StageOutput
from semantica.data.schemas import FEATURES
from semantica.evaluation.features import Features
from semantica.evaluation.figures import Measurer
from semantica.evaluation.networks import Networks
from semantica.evaluation.outcome import Outcome, TrainPictures
from semantica.evaluation.protocols.details import details
from semantica.evaluation.requests import Cell, repeated, requests_of
from semantica.evaluation.settings import EvaluationConfig
from semantica.measure.diversity import diversity
from semantica.measure.kernel import kernel_distance
from semantica.measure.manifold import manifold
from semantica.measure.nearest import nearest_training
from semantica.measure.networks.extractors import ExtractorIdentity

DIM = 5
CELL = Cell("m", "set", "pictures", 0.5)
SETTINGS = EvaluationConfig(num=10, protocol=("details",), extractor=("encoder",), perceptual=(), neighbours=3, num_grid_rows=3)


@pytest.fixture
def made(a_set, tmp_path):
    return make_details(a_set, tmp_path, SETTINGS)


def make_details(a_set, tmp_path, settings):
    """(figures by name, then the features of samples, pictures, the grid's samples, training pictures)."""
    data = a_set({"cats": 8, "dogs": 8})
    requests = requests_of(CELL, "abc", data, settings)
    grid = requests_of(Cell("m", "set", "grid", 0.5), "abc", data, settings)
    generator = np.random.default_rng(0)
    train = [f"train{i}" for i in range(20)]
    names = [*data.pictures, *dict.fromkeys(r.name for r in [*requests, *grid]), *train]
    vectors = dict(zip(names, generator.standard_normal((len(names), DIM)).astype(np.float32) + 1, strict=True))
    vectors[requests[0].name] = vectors["train7"]  # a copy
    stage = StageOutput(tmp_path / "features", "features", {"resolution_px": 24})
    assert stage.open() is None
    rows = [{"name": name, "features": vector} for name, vector in vectors.items()]
    stage.write_shard("all", {"column": pa.Table.from_pylist(rows, schema=FEATURES)}, {})
    stage.finish({}, {})
    features = Features.open(tmp_path / "features", {"encoder": "column"})
    identity = {"encoder": ExtractorIdentity("encoder", "numbers", "FD (encoder)", "0" * 64, "none", 20)}
    measurer = Measurer(settings, {"set": features}, {"set": data}, None, tmp_path / "references", identity)
    results = {cell: measurer.measure(cell, requests, ["encoder"]) for cell in repeated(CELL, settings)}
    outcome = Outcome(settings, (), {"set": data}, Networks({}, (), {}, {}, identity), 24, results)
    outcome = replace(outcome, measurer=measurer, train=TrainPictures(features, train))
    found = {f.name: f for f in details(CELL, requests, grid, outcome)}
    drawn = np.stack([vectors[r.name] for r in requests])
    real = np.stack([vectors[name] for name in measurer.reference(data, [r.image_id for r in requests])])
    return found, drawn, real, np.stack([vectors[r.name] for r in grid]), np.stack([vectors[name] for name in train])


def test_each_figure_is_that_of_its_metric(made):
    found, drawn, real, grid, train = made
    where = "details/m/set/w0.5"
    kernel = kernel_distance(real, drawn, subset_size=10, num_subsets=100, seed=0)
    assert found[f"{where}/kd-encoder"].value == kernel.mean
    assert found[f"{where}/kd-encoder/std-over-subsets"].value == kernel.std
    expected = manifold(real, drawn, 3)
    for name in ("precision", "recall", "density", "coverage"):
        assert found[f"{where}/{name}-encoder"].value == getattr(expected, name)
    several = diversity(grid, np.repeat(np.arange(3), 4))
    assert (found[f"{where}/diversity"].value, found[f"{where}/diversity"].standard_error) == (several.mean, several.standard_error)
    copies = nearest_training(drawn, train, real)
    assert found[f"{where}/share-of-copies"].value == copies.share_of_copies >= 0.1
    assert len(found) == 8


def test_fewer_pictures_are_drawn_out_of_those_that_are_no_conditioning_images(a_set, tmp_path):
    settings = replace(SETTINGS, reference="others", num_details=5)
    found, _, real, *_ = make_details(a_set, tmp_path, settings)
    assert len(real) == 6
    assert "n = 5 against 5" in found["details/m/set/w0.5/kd-encoder"].protocol.sentence


def test_what_stands_beside_a_figure_says_how_many_pictures_and_how(made):
    found = made[0]
    stated = found["details/m/set/w0.5/kd-encoder"].protocol.sentence
    for part in ("n = 10 against 16", "encoder", "w = 0.5", "100 subsets of 10"):
        assert part in stated
    assert "k = 3" in found["details/m/set/w0.5/recall-encoder"].protocol.sentence
    assert "10 samples, 20 training pictures, 16 held-out ones" in found["details/m/set/w0.5/share-of-copies"].protocol


def test_what_is_measured_of_one_seed_says_so_whatever_other_protocols_repeat(a_set, tmp_path):
    found, *_ = make_details(a_set, tmp_path, replace(SETTINGS, num_seeds=3, num_condition_sets=2))
    for name in ("kd-encoder", "precision-encoder"):
        stated = found[f"details/m/set/w0.5/{name}"].protocol.sentence
        assert "seed 0;" in stated
        for other in ("seeds", "±", "biased"):
            assert other not in stated


def test_the_statistics_of_the_reference_are_kept_for_the_next_evaluation(made, tmp_path):
    (kept,) = (tmp_path / "references").glob("*.safetensors")
    assert kept.stat().st_size > DIM * DIM * 8
