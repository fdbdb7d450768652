"""The protocol `overview`: what is measured by which network, closed forms of its baselines, and what stands beside each figure."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from semantica.config import override
from semantica.data.dataset import StageOutput
from semantica.data.schemas import DISTANCES, FEATURES
from semantica.diffusion.settings import GuidanceConfig, SamplerConfig
from semantica.distributed.evaluate import measured
from semantica.encoders.encoder import EncoderIdentity
from semantica.errors import ConfigError, DataError
from semantica.evaluation.baselines import COPIES, NOISE, TRAIN, named_noise, noise_picture, train_names
from semantica.evaluation.features import Features
from semantica.evaluation.figures import Measurer, PageRetrieval
from semantica.evaluation.models import EvaluatedModel
from semantica.evaluation.networks import Networks
from semantica.evaluation.outcome import Outcome
from semantica.evaluation.protocols import cells_of
from semantica.evaluation.protocols.overview import _Page, sampler_words
from semantica.evaluation.requests import Cell, requests_of
from semantica.evaluation.settings import EvaluationConfig, OverviewConfig
from semantica.generation.settings import GenerateConfig
from semantica.measure.frechet import FeatureStatistics, frechet_distance
from semantica.measure.networks.extractors import ExtractorIdentity
from semantica.measure.retrieval import Retrieval
from semantica.presets import tiny
from semantica.training.checkpoint import Checkpoint, Provenance

DIM, NUM_CONDITIONS, PER_CONDITION = 6, 5, 2
ENCODER = EncoderIdentity("e", "0" * 64, 56, (0.5,) * 3, (0.5,) * 3, "float32", 16, 8, 8)
HOW = GenerateConfig(
    sampler=SamplerConfig(name="ddim", num_steps=7, clip=False),
    guidance=(0.0, 0.5),
    num_conditions=NUM_CONDITIONS,
    samples_per_condition=PER_CONDITION,
    use_ema=False,
    seed=3,
)
NETWORKS = Networks(
    {},
    ("lpips-alex",),
    {},
    {},
    {name: ExtractorIdentity(name, name, name, "0" * 64, "a resize", DIM) for name in ("encoder", "inception", "lpips-alex")},
    {name: name for name in ("encoder", "inception", "lpips-alex")},
)


def settings(**values):
    own = OverviewConfig(**values)
    return EvaluationConfig.of_samples(own, HOW, NUM_CONDITIONS * PER_CONDITION, ("encoder", "inception"), ("lpips-alex",))


@pytest.fixture
def data(a_set):
    return a_set({"cats": 10, "dogs": 8}, train=9, facts={"encoder": ENCODER.to_dict()})


def run(data, tmp_path, *, near=0.1, shift=0.0, mean=None):
    """Measured cells on random features; samples lie `near` their own condition."""
    chosen = settings()
    cells = cells_of(chosen, ["model"], ["model"], [data.name])
    requests = {cell: requests_of(cell, "abc", data, chosen) for cell in cells}
    generator = np.random.default_rng(0)
    trained = train_names(Cell("", data.name, TRAIN), data, chosen)
    noise = [f"noise/{chosen.baseline_seed}/{i}" for i in range(chosen.num)]
    names = [*data.pictures, *trained, *noise]
    vectors = dict(zip(names, 2 * generator.standard_normal((len(names), DIM)).astype(np.float32) + np.float32(shift), strict=True))
    distances = {}
    for request in (r for of in requests.values() for r in of):
        offset = near * generator.standard_normal(DIM).astype(np.float32)
        vectors[request.name] = vectors[request.image_id] + offset
        distances[request.name] = float(len(distances))
    stage = StageOutput(tmp_path / f"features-{near}-{shift}-{mean is None}", "features", {})
    assert stage.open() is None
    rows = [{"name": name, "features": vector} for name, vector in vectors.items()]
    apart = [{"name": name, "distance": value} for name, value in distances.items()]
    table = pa.Table.from_pylist(rows, schema=FEATURES)
    halved = pa.Table.from_pylist([{**row, "features": row["features"] / 2} for row in rows], schema=FEATURES)
    tables = {"encoder": table, "inception": halved, "lpips-alex": pa.Table.from_pylist(apart, schema=DISTANCES)}
    stage.write_shard("all", tables, {})
    stage.finish({}, {})
    features = {data.name: Features.open(stage.folder, NETWORKS.columns)}
    measurer = Measurer(chosen, features, {data.name: data}, mean, by_place=True)
    results = measured(cells, requests, measurer)
    return SimpleNamespace(
        data=data, cells=cells, requests=requests, vectors=vectors, measurer=measurer, results=results, settings=chosen
    )


def fd(a, b):
    return frechet_distance(FeatureStatistics.of(np.stack(a)), FeatureStatistics.of(np.stack(b)))


def drawn(w):
    return Cell("model", "set", "pictures", w)


def baseline(kind):
    return Cell("", "set", kind)


@pytest.fixture
def found(data, tmp_path):
    return run(data, tmp_path)


def test_inception_measures_copies_and_the_samples_of_the_shown_w_alone(found):
    assert found.cells == {
        drawn(0.0): ("encoder", "lpips-alex"),
        drawn(0.5): ("encoder", "inception", "lpips-alex"),
        baseline(COPIES): ("encoder", "inception"),
        baseline(TRAIN): ("encoder",),
        baseline(NOISE): ("encoder",),
    }
    assert set(found.results[drawn(0.0)].frechet) == {"encoder"}
    assert found.results[drawn(0.5)].frechet["inception"] == pytest.approx(found.results[drawn(0.5)].frechet["encoder"] / 4)


def test_each_distance_is_to_the_held_out_pictures_that_are_no_conditioning_images(found):
    asked = found.requests[drawn(0.5)]
    conditions = [r.image_id for r in asked]
    assert (len(asked), len(set(conditions))) == (10, 5)
    reference = [v for name, v in found.vectors.items() if name in found.data.pictures and name not in conditions]
    assert found.results[drawn(0.5)].num_reference == len(reference) == 13
    expected = {
        drawn(0.5): [found.vectors[r.name] for r in asked],
        baseline(COPIES): [found.vectors[name] for name in conditions],  # each as often as it was sampled
        baseline(TRAIN): [found.vectors[name] for name in train_names(baseline(TRAIN), found.data, found.settings)],
        baseline(NOISE): [v for name, v in found.vectors.items() if name.startswith("noise/")],
    }
    for cell, vectors in expected.items():
        assert found.results[cell].frechet["encoder"] == fd(vectors, reference), cell.kind
    assert [found.results[cell].num_samples for cell in expected] == [10, 10, 9, 10]


def test_samples_near_their_own_condition_are_more_like_it_than_like_others(data, tmp_path, found):
    similarity = found.results[drawn(0.5)].similarity
    assert similarity.own > 0.97
    assert similarity.num_standard_errors > 10
    assert found.results[baseline(COPIES)].similarity is None
    far = run(data, tmp_path, near=30.0).results[drawn(0.5)].similarity
    assert far.difference < similarity.difference / 2


def test_the_corpus_mean_changes_the_cosines_and_no_distance(data, tmp_path):
    plain = run(data, tmp_path, shift=5.0).results
    centred = run(data, tmp_path, shift=5.0, mean=np.full(DIM, 5.0)).results
    assert plain[drawn(0.5)].similarity.other > 0.7
    assert abs(centred[drawn(0.5)].similarity.other) < 0.5
    assert {cell: r.frechet for cell, r in centred.items()} == {cell: r.frechet for cell, r in plain.items()}


def test_without_training_pictures_there_is_no_figure_of_them(a_set, tmp_path):
    assert baseline(TRAIN) not in run(a_set({"cats": 10, "dogs": 8}), tmp_path).results


def test_a_weight_that_was_not_drawn_is_refused_with_those_that_were():
    with pytest.raises(DataError, match=r"evaluate\.guidance is 0\.3, but samples were drawn at w = 0, 0\.5 only"):
        cells_of(settings(guidance=0.3), ["model"], ["model"], ["set"])


def test_settings_out_of_range_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"guidance must be 0 or more"):
        OverviewConfig(guidance=-0.1)
    with pytest.raises(ConfigError, match=r"batch_size must be positive"):
        OverviewConfig(batch_size=0)


def test_settings_of_given_samples_come_back_from_those_of_an_evaluation():
    own = OverviewConfig(guidance=0.0, centred=True, batch_size=7, seed=5)
    assert EvaluationConfig.of_samples(own, HOW, 10, ("encoder", "inception"), ("lpips-alex",)).overview() == own
    none = replace(own, inception=False, perceptual=False)
    assert EvaluationConfig.of_samples(none, HOW, 10, ("encoder",), ()).overview() == none


def test_noise_pictures_are_keyed_by_seed_and_index():
    first = noise_picture(0, 0, 16)
    assert torch.equal(named_noise("noise/0/0", 16), first)
    assert not torch.equal(noise_picture(0, 1, 16), first)
    assert not torch.equal(noise_picture(1, 0, 16), first)
    levels = torch.stack([noise_picture(0, i, 16) for i in range(20)]).float()
    # P(|z| > 1) = 0.3173: that share is clipped to black or white.
    assert float(((levels == 0) | (levels == 255)).float().mean()) == pytest.approx(0.3173, abs=0.02)


@pytest.fixture
def page(found):
    return page_of(found)


def page_of(found):
    config = override(tiny().train, {})
    checkpoint = Checkpoint(Path("nowhere/model"), config, 9, Provenance({"identity": {"name": "e"}}, "", ""), None, {}, 0, 0, ())
    models = [EvaluatedModel("model", "model", checkpoint)]
    return _Page(
        Outcome(found.settings, models, {"set": found.data}, NETWORKS, 16, found.results, found.requests, measurer=found.measurer)
    )


@pytest.mark.parametrize(
    ("name", "extractor", "n"),
    [
        ("fd_samples", "encoder", "n = 10 against 13"),
        ("fid_samples", "inception", "n = 10 against 13"),
        ("perceptual_distance", "lpips-alex", "n = 10;"),
        ("similarity_difference", "encoder", "n = 10;"),
    ],
)
def test_a_figure_of_samples_says_everything_that_it_depends_on(page, name, extractor, n):
    stated = {f.name: f for f in page.sample_figures()}[name].protocol
    for part in ("16 px", n, extractor, "7 steps", "w = 0.5", "raw weights", "seed 3", "DDIM", "5 conditioning images"):
        assert part in stated.sentence
    assert stated.resize


@pytest.mark.parametrize(("name", "n"), [("fd_copy", 10), ("fd_train", 9), ("fd_noise", 10), ("fid_copy", 10)])
def test_what_was_not_drawn_has_no_w_steps_weights_or_seed(page, name, n):
    stated = {f.name: f for f in page.sample_figures()}[name].protocol
    assert (stated.num_samples, stated.num_reference) == (n, 13)
    assert (stated.guidance, stated.num_steps, stated.ema, list(stated.seeds)) == (None, None, None, [])


def test_the_table_has_a_row_per_w_and_the_first_sentence_its_verdict(page):
    (table,) = page.tables()
    assert [row[0] for row in table.rows] == [0.0, 0.5]
    assert [row[2] is None for row in table.rows] == [True, False]  # FID at one w
    first, second = page.verdicts()
    assert page.retrieval is not None  # of a few pages, which get no sentence
    assert first.startswith("Samples are more like their own conditioning image than like others: 0.9")
    assert all(f"{name} " in second for name in ("samples", "noise", "training pictures", "Copy"))


@pytest.fixture
def pages_of_two(a_set):
    """Twelve pages of two pictures."""
    return a_set({f"page {i}": 2 for i in range(12)}, train=9, facts={"encoder": ENCODER.to_dict()})


def place_pages(found, generator):
    """Let the pictures of a page lie in one direction, and samples near their own condition. Returns the features by name."""
    dim = 2 * DIM
    direction = {page: generator.standard_normal(dim) for page in sorted({p.episode_id for p in found.data.pictures.values()})}
    at = {name: direction[p.episode_id] + 0.01 * generator.standard_normal(dim) for name, p in found.data.pictures.items()}
    at |= {r.name: at[r.image_id] + 0.01 * generator.standard_normal(dim) for of in found.requests.values() for r in of}

    def matrix(network, names):
        assert network == "encoder"
        return np.stack([at[name] for name in names])

    found.measurer.features = {"set": SimpleNamespace(matrix=matrix)}
    return at


def test_samples_that_show_their_own_page_are_found_as_real_pictures_are_and_those_of_another_page_never(pages_of_two, tmp_path):
    found = run(pages_of_two, tmp_path)
    place_pages(found, np.random.default_rng(1))
    requests = found.requests[drawn(0.5)]
    result = found.measurer.retrieval(drawn(0.5), requests)
    pictures = found.data.pictures
    conditions = {r.image_id for r in requests}
    gallery = {p.episode_id for name, p in pictures.items() if name not in conditions}
    assert result.samples.num_ways == len(gallery)
    assert len(result.samples.page) == len({pictures[name].episode_id for name in conditions} & gallery) >= 2
    for at in (result.samples, result.real):
        assert at.accuracy == 1
    assert result.other.accuracy == 0


def test_samples_that_ignore_their_condition_are_found_by_chance_though_real_pictures_are_found(pages_of_two, tmp_path):
    generator, found, values = np.random.default_rng(2), run(pages_of_two, tmp_path), []
    for _ in range(200):
        at = place_pages(found, generator)
        requests = found.requests[drawn(0.5)]
        at.update({r.name: generator.standard_normal(2 * DIM) for r in requests})
        result = found.measurer.retrieval(drawn(0.5), requests)
        assert result.real.accuracy == 1
        values.append((result.samples.accuracy, result.other.accuracy))
    error = np.std(values, axis=0, ddof=1) / np.sqrt(len(values))
    np.testing.assert_array_less(np.abs(np.mean(values, axis=0) - result.samples.chance), 4 * error)


def test_the_corpus_mean_is_subtracted_before_retrieval(pages_of_two, tmp_path):
    found = run(pages_of_two, tmp_path)
    at, requests = place_pages(found, np.random.default_rng(1)), found.requests[drawn(0.5)]
    plain = found.measurer.retrieval(drawn(0.5), requests)
    for name in at:
        at[name] = at[name] + 100
    found.measurer.corpus_mean = np.full(2 * DIM, 100.0)
    assert found.measurer.retrieval(drawn(0.5), requests).samples.accuracy == plain.samples.accuracy


def test_pages_of_one_picture_have_no_retrieval_and_no_sentence_of_it(a_set, tmp_path):
    found = run(a_set({f"page {i}": 1 for i in range(18)}, facts={"encoder": ENCODER.to_dict()}), tmp_path)
    assert found.measurer.retrieval(drawn(0.5), found.requests[drawn(0.5)]) is None
    assert len(page_of(found).verdicts()) == 2
    assert not [f for f in page_of(found).sample_figures() if f.name.startswith("page_retrieval")]


def test_the_sentence_of_retrieval_gives_chance_real_pictures_and_another_page_beside_it(found, monkeypatch):
    def some(accuracy, error):
        return Retrieval(accuracy, error, 100, np.arange(2), np.zeros(2))

    measured = PageRetrieval(some(0.1234, 0.0321), some(0.456, 0.05), some(0.0088, 0.001))
    monkeypatch.setattr(found.measurer, "retrieval", lambda cell, requests: measured)
    page = page_of(found)
    assert page.verdicts()[1] == (
        "Of 100 pages, the sample's own is the nearest for 12.3 ± 3.2% (chance 1.0%, real pictures 45.6 ± 5.0%, "
        "samples of another page 0.9 ± 0.1%, w = 0.5)."
    )
    figures = {f.name: f for f in page.sample_figures()}
    assert (figures["page_retrieval"].value, figures["page_retrieval"].standard_error) == (0.1234, 0.0321)
    assert "nearest of 100 held-out pages" in figures["page_retrieval"].explanation
    assert figures["page_retrieval_other"].protocol.guidance == 0.5
    real = figures["page_retrieval_real"].protocol
    assert (real.guidance, real.num_steps, list(real.seeds), real.num_samples, real.error_of) == (None, None, [], 5, "pages")


def test_the_sampler_is_the_one_that_was_used():
    assert sampler_words(HOW) == "DDIM, 7 steps, x_hat not clipped"
    assert sampler_words(GenerateConfig()) == "DDPM, 256 steps, interpolation 0.2, x_hat clipped"
    beyond = GenerateConfig(beyond=GuidanceConfig(rescale=0.7), similarity=0.5)
    assert sampler_words(beyond).endswith("x_hat clipped, guidance rescale 0.7, asked for similarity 0.5")
