"""Evaluation sets that share no page with what is trained, and views and trainings on encodings of a few pictures."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.domains import EvaluationSet, Listed, Run, evaluation_sets, family_of, is_labelled, unseen_pages, view
from benchmarks.trials import Measurer, run_trial
from benchmarks.variants import FINAL, FRECHET, SIMILARITY, VARIANTS, address, train_config
from semantica.denoiser import configs
from semantica.diffusion.settings import SamplerConfig
from semantica.errors import DataError
from semantica.generation.settings import GenerateConfig
from semantica.measure.networks.extractors import ExtractorIdentity, FeatureExtractor
from semantica.pairs.loader import Batches, PairLoader, open_pairs
from semantica.pairs.selection import BandConfig
from semantica.presets import preset

# --- evaluation sets


def listing(num_pages=9, num_images=8):
    names = [f"sprites/kind{i % 5}/page{i}" for i in range(num_pages)] + [f"emoji/class{i}" for i in range(3)]
    return [Listed(f"{page}#{i}", page, i % 4 == 0) for page in names for i in range(num_images)]


def test_unseen_pages_are_whole_families_beside_the_labelled_ones_and_leave_half_to_learn_from():
    pictures = listing()
    unseen = unseen_pages(pictures, "emoji")
    others = [p for p in pictures if not is_labelled(p.page, "emoji")]
    assert unseen
    assert not any(is_labelled(page, "emoji") for page in unseen)
    seen_families = {family_of(p.page) for p in others if p.page not in unseen}
    assert not seen_families & {family_of(page) for page in unseen}
    assert sum(p.page in unseen for p in others) <= len(others) / 2


def test_sets_hold_no_picture_that_the_grouped_models_are_trained_on():
    pictures = listing()
    unseen = unseen_pages(pictures, "emoji")
    sets = evaluation_sets(pictures, "emoji", unseen, num=10, num_reference=100)
    of = {p.image_id: p for p in pictures}
    trained = {p.image_id for p in pictures if not p.is_held_out and p.page not in unseen}
    for name in ("labelled", "pages", "unseen"):
        assert sets[name].reference
        assert not trained & set(sets[name].reference)
        assert set(sets[name].conditions) <= set(sets[name].reference)
    assert len(sets["held_out"].conditions) == 10
    assert {of[name].page for name in sets["labelled"].classes} == {f"emoji/class{i}" for i in range(3)}
    assert len(sets["labelled"].classes) == 3


def test_a_labelled_folder_that_is_not_there_is_said():
    with pytest.raises(DataError, match="--labelled flowers"):
        evaluation_sets(listing(), "flowers", frozenset(), num=4, num_reference=4)


# --- views and trainings on encodings of a few pictures


@pytest.fixture(scope="module")
def few(tmp_path_factory, make):
    """A run of twelve pages, each a row group of its own."""
    folder = tmp_path_factory.mktemp("few")
    make.encodings(folder / "encodings", rows_per_group=1)
    make.scores(folder / "scores", folder / "encodings")
    return Run(folder)


def drawn_pages(run, selection):
    """The pages of the conditioning images of many batches."""
    page_of = {int(run.read([p.image_id])[p.image_id].tokens[0, 0]): p.page for p in run.listing}
    loader = PairLoader(open_pairs(run.encodings, selection), Batches(seed=0, batch_size=8, num_lanes=2, resolution_px=16))
    numbers = {int(n) for step in range(20) for n in loader.batch(step).cond.tokens[:, 0, 0, 0]}
    return {page_of[n] for n in numbers}


def test_a_view_draws_from_its_pages_alone_and_from_all_of_them_that_have_pairs(few, tmp_path):
    sizes = Counter(p.page for p in few.listing)
    kept = set(sorted(sizes)[::2])
    band = BandConfig(low=-1.0, high=1.0)
    whole = view(few, band, tmp_path / "views" / "whole")
    part = view(few, band, tmp_path / "views" / "part", lambda page: page in kept)
    assert drawn_pages(few, whole) == {page for page, size in sizes.items() if size > 1}
    assert drawn_pages(few, part) == {page for page, size in sizes.items() if size > 1 and page in kept}
    assert view(few, band, part, lambda page: page in kept) == part  # made once
    with pytest.raises(DataError, match="another configuration"):
        view(few, band, part, lambda page: page not in kept)


def test_row_groups_of_pages_of_both_kinds_are_refused(tmp_path, make):
    make.encodings(tmp_path / "encodings", rows_per_group=3)
    make.scores(tmp_path / "scores", tmp_path / "encodings")
    run = Run(tmp_path)
    first = min(p.page for p in run.listing)
    with pytest.raises(DataError, match="--rows-per-group 1"):
        view(run, BandConfig(low=-1.0, high=1.0), tmp_path / "views" / "part", lambda page: page == first)


def test_a_picture_is_read_with_its_own_encodings(few, make):
    names = [p.image_id for p in few.listing][::5]
    read = few.read(names)
    assert set(read) == set(names)
    for picture in read.values():
        number = int(picture.tokens[0, 0])
        assert picture.data == make.picture(number)
    with pytest.raises(DataError, match="no picture nowhere"):
        few.read(["nowhere"])


def test_a_training_leaves_its_figures_at_every_point_and_the_same_ones_again(few, tmp_path):
    names = tuple(p.image_id for p in few.listing)
    of = EvaluationSet("held_out", names[:10], names, names[:3])
    extractor = FeatureExtractor(
        ExtractorIdentity("projection", "projection", "FD", "", "none", 6), lambda x: x.float() / 255, projection, "cpu", 8
    )
    made = preset("tiny")
    denoiser = configs.tiny(resolution_px=16)
    schedule = replace(made.train.schedule, resolution_px=16)
    train = replace(made.train, denoiser=denoiser, schedule=schedule, batch_size=4, num_lanes=2, window_groups=2)
    config = train_config(VARIANTS["improved"], replace(made, train=train), few.encoder, budget=4, points=2, seed=1)
    selection = view(few, BandConfig(low=-1.0, high=1.0), tmp_path / "view")

    def trial():
        drawing = GenerateConfig(sampler=SamplerConfig(num_steps=2))
        measurer = Measurer({"held_out": of}, few.read(names), [extractor], None, None, 16, drawing, torch.device("cpu"))
        return run_trial(VARIANTS["improved"], config, few, selection, measurer, lambda text: None)

    found = trial()
    figures = found["figures"]
    assert f"2/pictures/held_out/w0/{FRECHET}" in figures
    for kind, data, w in VARIANTS["improved"].cells:
        assert np.isfinite(figures[address(FINAL, kind, data, w, FRECHET)]["value"])
    assert address(FINAL, "copy", "held_out", 0, SIMILARITY) not in figures
    assert len(figures[address(FINAL, "copy", "held_out", 0, FRECHET)]["without"]) == 3
    assert found["cost"]["images_seen"] == 16
    assert trial()["figures"] == figures


def projection(x):
    """Six fixed features of pictures."""
    return x.flatten(1)[:, ::130][:, :6]
