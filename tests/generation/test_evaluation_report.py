"""From results by cell to the report: every protocol's figures, tables and curves, with what stands beside them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from semantica.config import override
from semantica.data.pictures import PictureRef
from semantica.encoders.encoder import EncoderIdentity
from semantica.errors import ConfigError, DataError, WeightsError
from semantica.evaluation.figures import CellFigures
from semantica.evaluation.models import EvaluatedModel, check_one_resolution, check_similarity, last_of_runs, open_models
from semantica.evaluation.networks import Networks, chosen_networks, find_networks
from semantica.evaluation.outcome import Outcome, Sources
from semantica.evaluation.protocols import cells_of, without_classes
from semantica.evaluation.sets import EvaluationSet
from semantica.evaluation.settings import EvaluationConfig
from semantica.evaluation.summary import _sentences, build_report
from semantica.measure.networks.extractors import ExtractorIdentity
from semantica.measure.similarity import own_and_other
from semantica.report.page import render, to_json
from semantica.training.checkpoint import Keeper, open_checkpoint
from semantica.training.recipe import KeepConfig

IDENTITIES = {
    "encoder": ExtractorIdentity("encoder", "the encoder", "FD (encoder)", "0" * 64, "none", 4),
    "inception": ExtractorIdentity("inception", "FID Inception", "FID", "1" * 64, "299 px", 2048),
    "lpips-alex": ExtractorIdentity("lpips-alex", "LPIPS (AlexNet)", "LPIPS", "2" * 64, "none", 0),
}
NETWORKS = Networks({}, ("lpips-alex",), {}, {}, IDENTITIES, {})


@pytest.fixture(scope="module")
def checkpoint(runs):
    return open_checkpoint(runs.plain.checkpoint / "model")


def a_set(name, tmp_path, num=12):
    num_classes = 1 if name == "church" else 3
    pictures = {f"{i:032x}": PictureRef(f"{i:032x}", "e", 0, 0, f"class {i % num_classes}", 16) for i in range(num)}
    return EvaluationSet(name, tmp_path, "3" * 64, pictures, quarantined={"undecodable": 2})


def report(*args, **values):
    return build_report(outcome(*args, **values), notes=())


def outcome(checkpoint, tmp_path, runs, sets=("imagenet",), similarity=None, **values):
    settings = EvaluationConfig(
        **({"num": 6, "extractor": ("inception",), "perceptual": ("lpips-alex",), "num_seeds": 3, "num_condition_sets": 2} | values)
    )
    models = [
        EvaluatedModel(f"{run}-step{step}" if len(steps) > 1 else run, run, replace(checkpoint, step=step))
        for run, steps in runs.items()
        for step in steps
    ]
    data = {name: a_set(name, tmp_path) for name in sets}
    cells = cells_of(
        settings, [m.name for m in models], last_of_runs(models), list(data), without_classes(settings, list(data.values()))
    )
    generator = np.random.default_rng(0)
    results = {}
    for cell in (c for c in cells if c.kind != "grid"):
        perceptual = {} if cell.kind == "copy" else {"lpips-alex": generator.uniform(0.6, 0.8)}
        results[cell] = CellFigures(6, 6, 12, {"inception": generator.uniform(10, 30)}, perceptual, similarity)
    sources = Sources(command="the command")
    return Outcome(settings, models, data, NETWORKS, 16, results, sources=sources)


def test_a_curve_is_a_point_a_w_with_both_standard_errors(checkpoint, tmp_path):
    made = report(checkpoint, tmp_path, {"semantica": [12]}, guidance=(0.0, 0.5), protocol=("curve",))
    plain = json.loads(json.dumps(to_json(made)))
    (curve,) = made.curves
    (xs, ys) = curve.series["semantica"]
    assert curve.point_labels == {"semantica": ["w = 0", "w = 0.5"]}
    assert xs == [plain["curve/semantica/imagenet/w0/fid"], plain["curve/semantica/imagenet/w0.5/fid"]]
    assert ys[0] == plain["curve/semantica/imagenet/w0/lpips-alex"]
    figure = next(f for f in made.figures if f.name == "curve/semantica/imagenet/w0.5/fid")
    assert figure.standard_error == curve.x_error["semantica"][1] > 0
    over = next(f for f in made.figures if f.name == "curve/semantica/imagenet/w0.5/fid/over-conditions")
    assert over.value != figure.value  # another mean, which its own error stands beside
    assert over.standard_error > 0
    assert "seed 0; ± over 2 conditioning sets" in over.protocol.sentence
    assert "w = " not in curve.protocol.sentence  # it is of all w
    assert "w = " not in made.tables[0].protocol.sentence
    stated = figure.protocol.sentence
    for part in (
        "n = 6 against 12",
        "inception",
        "resize 299 px",
        "512 steps",
        "w = 0.5",
        "EMA",
        "seeds 0 to 2",
        "3 sampling seeds",
    ):
        assert part in stated
    assert "over 2 conditioning sets" in stated
    assert "below the 2048 dimensions, so the distance is biased upwards" in stated
    assert any("Small n: 6 pictures are fewer than the dimensions of FID Inception (2048)" in line for line in made.summary)
    assert any("imagenet: not used, each with a row in the quarantine: 2 undecodable" in line for line in made.summary)
    assert "the command" in render(made)


def test_figures_of_a_set_that_the_paper_has_stand_beside_the_papers(checkpoint, tmp_path):
    runs = {"label_grouped": [12], "semantica": [12]}
    made = report(checkpoint, tmp_path, runs, sets=("imagenet", "bedroom", "mine"), protocol=("curve", "grouping", "one-shot"))
    (paper,) = made.papers
    keys = [row.paper for row in paper.rows]
    for key in (
        "fid.semantica.bedroom.w0.5",
        "fid.label_grouped.imagenet.w0",
        "one_shot.semantica.imagenet.w0.5",
        "one_shot.copy.imagenet",
    ):
        assert keys.count(key) == 1
    assert all("not comparable" in row.verdict for row in paper.rows)  # six samples of a model of 16 px
    titles = [table.title for table in made.tables]
    assert {"Models beside each other, mine", "One shot, imagenet", "Evaluation sets"} <= set(titles)
    table = made.tables[titles.index("One shot, imagenet")]
    assert [row[0] for row in table.rows] == ["Copy", "label_grouped", "label_grouped", "semantica", "semantica"]
    assert table.rows[0][1] is None
    render(made)


def test_one_shot_passes_over_a_set_of_one_label_beside_sets_with_classes(checkpoint, tmp_path):
    """One command gives both halves of Table 1."""
    made = report(checkpoint, tmp_path, {"semantica": [12]}, sets=("imagenet", "church"), protocol=("grouping", "one-shot"))
    names = {"/".join(figure.name.split("/")[:3]) for figure in made.figures}
    assert {"grouping/semantica/church", "one-shot/semantica/imagenet", "one-shot/copy/imagenet"} <= names
    assert not any(name.startswith("one-shot") and name.endswith("church") for name in names)
    assert any(line.startswith("church: left out of one-shot") for line in made.summary)
    settings = EvaluationConfig(protocol=("one-shot",))
    assert without_classes(settings, [a_set("church", tmp_path)]) == []  # alone it is refused, as before


def test_a_cosine_does_not_stand_beside_the_papers_lpips(checkpoint, tmp_path):
    similarity = own_and_other(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32), np.arange(3), None)
    made = report(checkpoint, tmp_path, {"semantica": [12]}, similarity=similarity, guidance=(0.0,), protocol=("curve",))
    assert "curve/semantica/imagenet/w0/similarity-own" in to_json(made)
    rows = [(row.paper, row.protocol.extractor) for paper in made.papers for row in paper.rows]
    assert rows == [("fid.semantica.imagenet.w0", "inception"), ("lpips.semantica.imagenet.w0", "lpips-alex")]


def test_pictures_alone_are_not_said_to_be_few(checkpoint, tmp_path):
    nothing = outcome(checkpoint, tmp_path, {"semantica": [12]}, protocol=("grids",))
    assert nothing.results == {}
    assert not any("Small n" in line for line in _sentences(nothing))


def test_the_standard_errors_of_one_shot_stand_beside_appendix_b(checkpoint, tmp_path):
    made = report(checkpoint, tmp_path, {"semantica": [12]}, protocol=("one-shot",), num_condition_sets=5)
    rows = {row.paper: row for paper in made.papers for row in paper.rows}
    figures = {figure.name: figure for figure in made.figures}
    for key, name, over in (("seeds", "fid", "3 sampling seeds"), ("conditions", "fid/over-conditions", "5 conditioning sets")):
        row, figure = rows[f"standard_error.{key}"], figures[f"one-shot/semantica/imagenet/w0.5/{name}"]
        assert (row.value, row.standard_error) == (figure.value, figure.standard_error)
        assert f"± over {over}" in row.protocol.sentence
    (table,) = (table for table in made.tables if table.title == "One shot, imagenet")
    column = table.columns.index("FID, over conditioning sets")
    assert (table.rows[-1][column], table.errors[-1][column]) == (row.value, row.standard_error)
    assert (table.rows[0][column], table.errors[0][column]) == (None, None)  # Copy is measured once


def test_training_is_a_line_a_run_over_its_steps(checkpoint, tmp_path):
    made = report(checkpoint, tmp_path, {"film": [5, 9], "cross": [5, 9, 12]}, protocol=("training",))
    (curve,) = made.curves
    assert {name: list(xs) for name, (xs, _) in curve.series.items()} == {"film": [5, 9], "cross": [5, 9, 12]}
    assert "training/cross-step12/imagenet/w0/fid" in to_json(made)


def test_the_kept_checkpoints_of_a_run_are_found(runs, checkpoint, tmp_path):
    base = tmp_path / "run"
    shutil.copytree(runs.plain.checkpoint / "model", base / "model")
    assert [(m.name, m.run) for m in open_models({"x": str(base)}, every_step=True)] == [("x", "x")]
    keeper = Keeper(base / "checkpoints", KeepConfig())
    shutil.copytree(base / "model", keeper.folder_of(12))
    (one,) = open_models({"x": str(base)}, every_step=True)  # the same step twice is one point
    assert one.checkpoint.step == 12
    assert open_models({"x": str(base / "model")}, every_step=False)[0].hash == checkpoint.hash[:12] == one.hash


def test_samples_of_a_checkpoint_stay_where_they_are_when_training_is_asked_for_too(checkpoint, tmp_path):
    """`training` gives every step a name, the last one too: its samples are not drawn again for that."""
    named = [EvaluatedModel(name, "x", checkpoint) for name in ("x", "x-step12")]
    assert named[0].samples_in(tmp_path, "set") == named[1].samples_in(tmp_path, "set")


def test_a_similarity_is_refused_for_every_denoiser_that_takes_none(checkpoint):
    takes = replace(checkpoint, config=override(checkpoint.config, {"denoiser.similarity": True}))
    models = [EvaluatedModel(name, name, one) for name, one in (("a", takes), ("b", checkpoint))]
    check_similarity(models[:1], 0.5)
    check_similarity(models, None)
    with pytest.raises(ConfigError, match=r"evaluation\.similarity: the denoiser of b takes none"):
        check_similarity(models, 0.5)


def test_a_network_without_weights_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMANTICA_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    settings = EvaluationConfig(extractor=("encoder",), perceptual=("lpips-alex",))
    identity = EncoderIdentity("e", "0" * 64, 14, (0.5,) * 3, (0.5,) * 3, "float32", 5, 8, 8).to_dict()
    with pytest.raises(WeightsError, match=r"alexnet-owt-7be5be79\.pth"):
        find_networks(settings, {}, identity)
    usual, notes = chosen_networks(EvaluationConfig())  # nobody named a network: what is here, and a sentence for each that is not
    assert (usual.extractor, usual.perceptual) == (("encoder",), ())
    assert [note.split()[0] for note in notes] == ["inception", "lpips-alex", "st-lpips-alex"]
    assert chosen_networks(settings) == (settings, [])  # what is named is never left out
    found = find_networks(replace(settings, perceptual=()), {}, identity)
    assert list(found.columns) == ["encoder"]
    other = find_networks(replace(settings, perceptual=()), {}, identity | {"weights_sha256": "1" * 64})
    assert found.columns != other.columns  # features of other weights never mix


def test_checkpoints_of_two_resolutions_are_refused(checkpoint):
    sides = {name: replace(getattr(checkpoint.config, name), resolution_px=32) for name in ("denoiser", "schedule")}
    larger = replace(checkpoint, config=replace(checkpoint.config, **sides))
    check_one_resolution([EvaluatedModel("one", "one", checkpoint), EvaluatedModel("same", "same", checkpoint)])
    with pytest.raises(DataError, match=r"draw at different resolutions \(one 16 px, two 32 px\); evaluate them apart"):
        check_one_resolution([EvaluatedModel("one", "one", checkpoint), EvaluatedModel("two", "two", larger)])
