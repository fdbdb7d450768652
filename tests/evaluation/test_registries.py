"""A protocol and an extractor that one file adds take part in an evaluation, from its cells to the page."""

import numpy as np
import pytest
import torch

from semantica.data.dataset import StageOutput
from semantica.distributed.evaluate import measured
from semantica.distributed.measure import MeasureShard
from semantica.errors import AbsentWeights, ConfigError
from semantica.evaluation import protocols, requests
from semantica.evaluation.features import Features
from semantica.evaluation.figures import Measurer
from semantica.evaluation.measuring import work_of
from semantica.evaluation.networks import find_networks
from semantica.evaluation.outcome import Outcome
from semantica.evaluation.protocols import EvaluationProtocol, Part, cells_of, known, protocol
from semantica.evaluation.requests import Cell, kind
from semantica.evaluation.settings import EvaluationConfig
from semantica.evaluation.summary import build_report
from semantica.measure.networks import extractors
from semantica.measure.networks.extractors import extractor, identity_of, key_of, resolve
from semantica.measure.networks.weights import WeightFile
from semantica.report.page import Figure, render, to_json

WEIGHTS = WeightFile("colours.bin", "0" * 64, 3, "mean colours")


def mean_colours(path, device):
    return lambda pictures: pictures.float(), lambda pictures: pictures.mean(dim=(2, 3))


def resolve_colours(folder):
    from pathlib import Path

    if not folder:
        raise AbsentWeights("mean colours: expected colours.bin, got none")
    return Path(folder)


def halves(cell, data, settings):
    return [(picture, 0) for picture in list(data.pictures.values())[::2]]


class Halves(EvaluationProtocol):
    """How far half of a set is from the whole: an estimate of the bias of n."""

    def cells(self, base, settings):
        yield Cell("", base.data, "halves")

    def part(self, outcome):
        figures = []
        for data in outcome.sets:
            cell = Cell("", data, "halves")
            figures += [
                Figure(name=f"halves/{data}/{m.key}", value=outcome.value(cell, m).value, protocol=outcome.protocol(cell, m))
                for m in outcome.metrics(cell)
            ]
        return Part(figures=figures, summary=["Halves were measured."])


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """What a file of its own does when it is imported; other tests do not see it."""
    known(), extractors.feature_names()  # the registries are whole before they are copied
    for module, name in ((extractors, "_REGISTRY"), (protocols, "_REGISTRY"), (requests, "_KINDS")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
    how = {"key": "colour-distance", "figure": "Colour distance", "resize": "none", "dim": 3, "weights": WEIGHTS}
    extractor("mean-colours", **how, find=lambda *, local_folder="", allow_network=False: resolve_colours(local_folder))(
        mean_colours
    )
    kind("halves", is_drawn=False, title="half of the pictures")(halves)
    protocol("halves")(Halves)


def test_a_protocol_and_an_extractor_of_one_file_go_through_an_evaluation(a_set, tmp_path):
    settings = EvaluationConfig(protocol=("halves",), extractor=("mean-colours",), perceptual=(), weights=str(tmp_path))
    data = a_set({"cats": 5, "dogs": 6})
    networks = find_networks(settings, {}, {})
    cells = cells_of(settings, ["m"], ["m"], ["set"])
    nothing = {cell: [] for cell in cells}
    out = StageOutput(tmp_path / "features", "features", {"resolution_px": 24})
    assert out.open() is None
    actor = MeasureShard(networks, 24, 4, out)
    for work in work_of(data, cells, nothing, {}, Measurer(settings, {}, {"set": data})):
        actor(work)
    out.finish({}, {})
    measurer = Measurer(settings, {"set": Features.open(out.folder, networks.columns)}, {"set": data})
    outcome = Outcome(settings, [], {"set": data}, networks, 24, measured(cells, nothing, measurer))
    report = build_report(outcome, notes=())
    assert to_json(report)["halves/set/colour-distance"] > 0
    assert "n = 6 against 11" in report.figures[0].protocol.sentence
    assert "Halves were measured." in render(report)
    pixels = measurer.features["set"].matrix("mean-colours", list(data.pictures))
    assert np.all((pixels > 100) & (pixels < 155))  # noise pictures are grey on average


def test_a_registered_network_has_an_identity_and_its_absence_is_an_error():
    assert (identity_of("mean-colours").dim, key_of("mean-colours")) == (3, "colour-distance")
    with pytest.raises(AbsentWeights, match=r"expected colours\.bin"):
        resolve("mean-colours")


def test_two_networks_or_protocols_of_one_name_are_refused():
    other = WeightFile("other.bin", "1" * 64, 3, "other colours")
    with pytest.raises(ConfigError, match="two networks are called 'mean-colours'; rename one"):
        extractor("mean-colours", key="k", figure="f", resize="none", dim=3, weights=other)(mean_colours)
    assert "curve" in known()
    with pytest.raises(ConfigError, match="two protocols are called 'curve'; rename one"):
        protocol("curve")(Halves)


def test_an_unknown_network_is_refused_with_those_that_are_known():
    settings = EvaluationConfig(extractor=("inception-v4",), perceptual=())
    with pytest.raises(ConfigError, match=r"expected one of .*dinov2.*inception.*, got 'inception-v4'"):
        find_networks(settings, {}, {})


def test_the_help_names_every_protocol_and_network():
    text = EvaluationConfig.__doc__
    own = {"halves", "mean-colours"}
    for name in {*known(), *extractors.feature_names(), *extractors.perceptual_names()} - own:
        assert name in text, name
    assert torch.is_tensor(mean_colours(None, "cpu")[1](torch.zeros(1, 3, 2, 2)))
