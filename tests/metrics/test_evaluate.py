"""Features -> figures: hand-made features whose figures are known, and what is refused."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from semantica.data.schemas import HELD_OUT_FEATURES
from semantica.encoders.encoder import Encoder, EncoderIdentity
from semantica.errors import ConfigError, DataError
from semantica.measure.frechet import FeatureStatistics, frechet_distance
from semantica.metrics.evaluate import compute_figures, noise_picture
from semantica.metrics.feature_rows import Extractors, MetricWeights, Picture
from semantica.metrics.settings import EvaluateConfig

DIM = 6


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rows(name, pooled, **columns):
    """FEATURES rows of one set; a column is a list with a value for each row."""
    table = []
    for i, vector in enumerate(pooled):
        row = {
            "set": name,
            "name": f"{name}{i}",
            "condition": "",
            "guidance": None,
            "pooled": vector,
            "inception": None,
            "perceptual": None,
        }
        table.append(row | {key: values[i] for key, values in columns.items()})
    return table


def features(*sets):
    return pa.Table.from_pylist([row for rows_of_set in sets for row in rows_of_set], schema=HELD_OUT_FEATURES)


def samples(conditions, repeats=2, guidance=0.5, near=0.1, seed=5, **columns):
    """`repeats` samples of each condition, at a distance of about `near`."""
    number = len(conditions) * repeats
    pooled = np.repeat(conditions, repeats, axis=0) + near * normal(number, DIM, seed=seed)
    of = [f"conditions{i}" for i in range(len(conditions)) for _ in range(repeats)]
    return rows("samples", pooled, condition=of, guidance=[guidance] * number, **columns)


def fd(a, b):
    return frechet_distance(FeatureStatistics.of(np.asarray(a, np.float32)), FeatureStatistics.of(np.asarray(b, np.float32)))


CONDITIONS, REFERENCE = 2 * normal(12, DIM, seed=1), 2 * normal(40, DIM, seed=2)


def test_copies_of_the_reference_are_at_distance_zero():
    table = features(rows("reference", CONDITIONS), rows("conditions", CONDITIONS), samples(CONDITIONS, repeats=1, near=0.0))
    figures = compute_figures(table, None)
    assert figures.frechet["copy"] == pytest.approx(0, abs=1e-9)
    assert figures.at(0.5).frechet == pytest.approx(0, abs=1e-9)
    assert figures.at(0.5).similarity.own == pytest.approx(1)


def test_copy_repeats_each_condition_as_often_as_it_was_sampled():
    few = CONDITIONS[:4]
    drawn = samples(few, repeats=3)
    figures = compute_figures(features(rows("reference", REFERENCE), rows("conditions", CONDITIONS), drawn), None)
    assert figures.frechet["copy"] == fd(np.repeat(few, 3, axis=0), REFERENCE)
    # Neither every condition once nor the sampled ones once: n and the weights are those of the samples.
    assert abs(figures.frechet["copy"] - fd(few, REFERENCE)) > 1e-3
    assert abs(figures.frechet["copy"] - fd(CONDITIONS, REFERENCE)) > 1e-3


def test_samples_near_their_own_condition_are_more_like_it_than_like_others():
    table = features(rows("reference", REFERENCE), rows("conditions", CONDITIONS), samples(CONDITIONS))
    similarity = compute_figures(table, None).at(0.5).similarity
    assert similarity.own > 0.97
    assert abs(similarity.other) < 0.3
    assert similarity.num_standard_errors > 10
    # The same samples given to the wrong conditions are no more like them than like others.
    wrong = samples(np.roll(CONDITIONS, 1, axis=0))
    swapped = compute_figures(features(rows("reference", REFERENCE), rows("conditions", CONDITIONS), wrong), None)
    assert swapped.at(0.5).similarity.difference < similarity.difference / 3


def test_every_set_has_its_distance_and_every_weight_its_figures():
    train, noise = normal(30, DIM, seed=3), 5 + normal(30, DIM, seed=4)
    near, far = samples(CONDITIONS, guidance=0.0), samples(CONDITIONS, guidance=1.0, near=3.0, seed=6)
    table = features(
        rows("reference", REFERENCE), rows("conditions", CONDITIONS), near, far, rows("train", train), rows("noise", noise)
    )
    figures = compute_figures(table, None)
    assert [f.guidance for f in figures.by_guidance] == [0.0, 1.0]
    assert [f.num_samples for f in figures.by_guidance] == [24, 24]
    assert (figures.num_reference, figures.num_conditions) == (40, 12)
    assert figures.frechet["train"] == fd(train, REFERENCE)
    assert figures.frechet["noise"] == fd(noise, REFERENCE)
    for drawn, weight in ((near, 0.0), (far, 1.0)):
        assert figures.at(weight).frechet == fd([r["pooled"] for r in drawn], REFERENCE)
    assert figures.at(0.0).similarity.own > figures.at(1.0).similarity.own


def test_the_order_of_the_rows_does_not_matter():
    table = features(rows("reference", REFERENCE), rows("conditions", CONDITIONS), samples(CONDITIONS))
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    a, b = (compute_figures(t, None) for t in (table, shuffled))
    assert b.frechet["copy"] == pytest.approx(a.frechet["copy"], rel=1e-9)
    assert b.at(0.5).frechet == pytest.approx(a.at(0.5).frechet, rel=1e-9)
    assert b.at(0.5).similarity.difference == pytest.approx(a.at(0.5).similarity.difference, rel=1e-9)


def test_the_corpus_mean_changes_the_cosines_and_no_distance():
    shift = np.full(DIM, 5, np.float32)
    moved = features(rows("reference", REFERENCE + shift), rows("conditions", CONDITIONS + shift), samples(CONDITIONS + shift))
    plain, centred = compute_figures(moved, None), compute_figures(moved, shift)
    origin = compute_figures(features(rows("reference", REFERENCE), rows("conditions", CONDITIONS), samples(CONDITIONS)), None)
    assert centred.at(0.5).similarity.difference == pytest.approx(origin.at(0.5).similarity.difference, abs=1e-5)
    assert plain.at(0.5).similarity.other > 0.7
    assert centred.frechet == plain.frechet
    assert centred.frechet["copy"] == pytest.approx(origin.frechet["copy"], rel=1e-4)


def test_fid_is_the_distance_in_inception_features_where_every_picture_has_them():
    inception = normal(24, 4, seed=8), normal(40, 4, seed=9), normal(12, 4, seed=10)
    with_inception = samples(CONDITIONS, inception=list(inception[0]))
    without = samples(CONDITIONS, guidance=1.0)
    table = features(
        rows("reference", REFERENCE, inception=list(inception[1])),
        rows("conditions", CONDITIONS, inception=list(inception[2])),
        with_inception,
        without,
    )
    figures = compute_figures(table, None)
    assert figures.at(0.5).fid == fd(inception[0], inception[1])
    assert figures.at(1.0).fid is None
    assert figures.fid_copy == fd(np.repeat(inception[2], 2, axis=0), inception[1])
    gap = with_inception[:-1] + samples(CONDITIONS)[-1:]
    table = features(rows("reference", REFERENCE, inception=list(inception[1])), rows("conditions", CONDITIONS), gap)
    figures = compute_figures(table, None)
    assert (figures.at(0.5).fid, figures.fid_copy) == (None, None)


def test_the_perceptual_distance_is_a_mean_over_all_samples_or_none():
    values = [float(v) for v in range(24)]
    base = rows("reference", REFERENCE), rows("conditions", CONDITIONS)
    assert compute_figures(features(*base, samples(CONDITIONS, perceptual=values)), None).at(0.5).perceptual == 11.5
    gap = samples(CONDITIONS, perceptual=[*values[:-1], None])
    assert compute_figures(features(*base, gap), None).at(0.5).perceptual is None


@pytest.mark.parametrize("missing", ["reference", "conditions", "samples"])
def test_a_missing_set_is_refused_by_its_name(missing):
    sets = {"reference": rows("reference", REFERENCE), "conditions": rows("conditions", CONDITIONS), "samples": samples(CONDITIONS)}
    del sets[missing]
    with pytest.raises(DataError, match=f"no pictures in the set '{missing}'"):
        compute_figures(features(*sets.values()), None)


@pytest.mark.parametrize("weight", [0.1, 0.3, 33.3, 1234.5])
def test_a_weight_is_found_as_it_was_stored_in_float32(weight):
    table = features(rows("reference", REFERENCE), rows("conditions", CONDITIONS), samples(CONDITIONS, guidance=weight))
    assert compute_figures(table, None).at(weight).num_samples == 24


def test_a_weight_that_was_not_drawn_is_refused_with_those_that_were():
    drawn = samples(CONDITIONS, guidance=0.0), samples(CONDITIONS, guidance=0.1)
    figures = compute_figures(features(rows("reference", REFERENCE), rows("conditions", CONDITIONS), *drawn), None)
    with pytest.raises(DataError, match=r"evaluate\.guidance is 0\.5, but samples were drawn at w = 0, 0\.1 only"):
        figures.at(0.5)


def test_settings_out_of_range_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"guidance must be 0 or more"):
        EvaluateConfig(guidance=-0.1)
    with pytest.raises(ConfigError, match=r"batch_size must be positive"):
        EvaluateConfig(batch_size=0)


def test_noise_pictures_are_keyed_by_seed_and_index():
    first = noise_picture(0, 0, 16)
    assert torch.equal(noise_picture(0, 0, 16), first)
    assert not torch.equal(noise_picture(0, 1, 16), first)
    assert not torch.equal(noise_picture(1, 0, 16), first)
    levels = torch.stack([noise_picture(0, i, 16) for i in range(20)]).float()
    # P(|z| > 1) = 0.3173: that share is clipped to black or white.
    assert float(((levels == 0) | (levels == 255)).float().mean()) == pytest.approx(0.3173, abs=0.02)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    settings = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2)
    identity = EncoderIdentity("random", "0" * 64, 28, (0.5,) * 3, (0.5,) * 3, "float32", 5, 8, 8)
    return Encoder(Dinov2Model(settings), identity, torch.device("cpu"))


def test_extracted_rows_are_the_encoders_pooled_embeddings_in_order(encoder):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 28, 28), np.uint8))
    pictures = [Picture(f"p{i}", p, "c", guidance=0.5) for i, p in enumerate(pixels)]
    expected = encoder(pixels).pooled.numpy()
    for batch_size in (2, 5):
        table = Extractors(encoder, MetricWeights(), batch_size).features("samples", pictures, with_inception=True)
        assert table.schema == HELD_OUT_FEATURES
        np.testing.assert_allclose(np.stack(table["pooled"].to_pylist()), expected, atol=1e-5)
        assert table["name"].to_pylist() == [f"p{i}" for i in range(5)]
        assert set(table["condition"].to_pylist()) == {"c"}
        assert table["inception"].null_count == table["perceptual"].null_count == 5


def test_no_pictures_give_an_empty_table_of_the_schema(encoder):
    table = Extractors(encoder, MetricWeights(), 4).features("reference", [], with_inception=False)
    assert (table.schema, table.num_rows) == (HELD_OUT_FEATURES, 0)
