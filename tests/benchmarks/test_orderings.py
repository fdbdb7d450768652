"""What the orderings benchmark rests on: verdicts that say what their errors allow, pairing, resuming, sets that share no page."""

import json
import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.domains import EvaluationSet, Listed, Run, evaluation_sets, family_of, is_labelled, unseen_pages, view
from benchmarks.orderings import finished, main, read_figures, read_result, result_path
from benchmarks.orderings_table import measured_rows, written
from benchmarks.trials import Measurer, frechet_figure, mean_figure, run_trial
from benchmarks.variants import FINAL, FRECHET, ORDERINGS, SIMILARITY, VARIANTS, address, shapes, train_config
from benchmarks.verdicts import (
    CANNOT_TELL,
    FAILS,
    HOLDS,
    NOT_RUN,
    Comparison,
    Figure,
    Gain,
    Place,
    common_seeds,
    gain,
    jackknife,
    judged,
    ranks_alike,
)
from benchmarks.verdicts import (
    mean_figure as mean_over_seeds,
)
from semantica.denoiser import configs
from semantica.denoiser.sizes import training_flops
from semantica.diffusion.samplers import SamplerConfig
from semantica.errors import DataError
from semantica.generation.generate import GenerateConfig
from semantica.metrics.extractors import ExtractorIdentity, FeatureExtractor
from semantica.metrics.frechet import FeatureStatistics, Reference, frechet_distance
from semantica.metrics.paper import ORDERINGS as PAPER_ORDERINGS
from semantica.pairs.loader import PairLoader
from semantica.pairs.selection import BandConfig
from semantica.presets import preset

AB = Comparison(Place("a", "x"), Place("b", "x"))
numbers = st.floats(-100, 100, allow_nan=False)
ENCODER = {"token_dim": 384, "num_tokens": 65, "pooled_dim": 384}


def figure(value, spread=0.0):
    return Figure(value, tuple(value + spread * x for x in (-1.0, 0.0, 1.0)))


# --- verdicts


def test_a_gain_of_more_than_two_errors_holds_and_a_loss_of_as_much_does_not():
    assert Gain(2.1, 1.0, 0.5, 3).verdict == HOLDS
    assert Gain(-2.1, 1.0, 0.5, 3).verdict == FAILS
    assert Gain(1.9, 1.0, 0.5, 3).verdict == CANNOT_TELL
    assert Gain(-1.9, 1.0, 0.5, 3).verdict == CANNOT_TELL


def test_the_larger_of_the_two_errors_decides():
    assert Gain(5.0, 0.1, 3.0, 3).verdict == CANNOT_TELL
    assert Gain(5.0, 3.0, 0.1, 3).verdict == CANNOT_TELL
    assert Gain(5.0, 2.0, 2.0, 3).verdict == HOLDS


def test_one_training_of_each_of_two_variants_tells_nothing_but_one_model_against_itself_may():
    assert Gain(50.0, None, 0.1, 1).verdict == CANNOT_TELL
    assert Gain(50.0, None, 0.1, 1, is_of_one_training=True).verdict == HOLDS


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=5))
def test_claiming_the_contrary_turns_the_verdict_round(pairs):
    figures = {(name, seed): {"x": figure(values[i], 0.1)} for seed, values in enumerate(pairs) for i, name in enumerate("ab")}
    one, other = gain(figures, AB), gain(figures, Comparison(AB.worse, AB.better))
    turned = {HOLDS: FAILS, FAILS: HOLDS, CANNOT_TELL: CANNOT_TELL}
    assert other.value == -one.value
    assert other.error == one.error
    assert other.verdict == turned[one.verdict]
    higher = gain(figures, Comparison(AB.better, AB.worse, higher_wins=True))
    assert higher.verdict == other.verdict


@given(st.lists(numbers, min_size=2, max_size=6), numbers, st.floats(0.5, 10))
def test_what_all_trainings_of_a_seed_share_is_not_in_the_error(by_seed, base, better_by):
    # Seeds scatter by far more than a and b differ; paired, that scatter is gone.
    figures = {}
    for seed, shift in enumerate(by_seed):
        figures["a", seed] = {"x": figure(base + shift)}
        figures["b", seed] = {"x": figure(base + shift + better_by)}
    found = gain(figures, AB)
    assert found.value == pytest.approx(better_by, abs=1e-9)
    assert found.over_seeds == pytest.approx(0, abs=1e-9)
    assert found.verdict == HOLDS


def test_the_error_over_seeds_is_that_of_the_mean_of_paired_differences():
    figures = {("a", s): {"x": figure(a)} for s, a in enumerate((1.0, 2.0, 4.0))}
    figures |= {("b", s): {"x": figure(b)} for s, b in enumerate((3.0, 3.0, 9.0))}
    found = gain(figures, AB)
    differences = np.array([2.0, 1.0, 5.0])
    assert found.value == pytest.approx(differences.mean())
    assert found.over_seeds == pytest.approx(differences.std(ddof=1) / math.sqrt(3))


def test_only_seeds_that_both_sides_have_are_compared():
    figures = {("a", s): {"x": figure(0.0)} for s in (0, 1, 5)} | {("b", s): {"x": figure(1.0)} for s in (1, 2, 5)}
    figures["b", 0] = {"another address": figure(9.0)}
    assert common_seeds(figures, AB) == [1, 5]
    assert gain(figures, AB).num_seeds == 2
    assert gain({key: of for key, of in figures.items() if key[0] == "a"}, AB) is None


def test_sides_with_other_groups_of_images_are_not_compared():
    figures = {("a", 0): {"x": Figure(1.0, (1.0, 1.0))}, ("b", 0): {"x": Figure(1.0, (1.0, 1.0, 1.0))}}
    with pytest.raises(ValueError, match="groups of conditioning images"):
        gain(figures, AB)


# --- jackknife


@given(st.lists(numbers, min_size=2, max_size=40))
def test_the_jackknife_of_a_mean_is_its_standard_error(values):
    x = np.array(values)
    without = [np.delete(x, i).mean() for i in range(len(x))]
    assert jackknife(without) == pytest.approx(x.std(ddof=1) / math.sqrt(len(x)), abs=1e-9)


def test_a_jackknife_needs_two_groups():
    with pytest.raises(ValueError, match="at least 2 groups"):
        jackknife([1.0])


def test_figures_without_a_group_are_those_of_the_other_rows():
    chance = np.random.default_rng(0)
    features, groups = chance.normal(size=(30, 4)), np.arange(30) % 5
    reference = Reference.of(FeatureStatistics.of(chance.normal(size=(50, 4)) + 1))
    found = frechet_figure(features, groups, reference)
    assert found.value == pytest.approx(frechet_distance(FeatureStatistics.of(features), reference))
    for group, value in enumerate(found.without):
        assert value == pytest.approx(frechet_distance(FeatureStatistics.of(features[groups != group]), reference))
    means = mean_figure(features[:, 0], groups)
    assert means.value == pytest.approx(features[:, 0].mean())
    assert means.without == pytest.approx([features[groups != group, 0].mean() for group in range(5)])


def test_the_jackknife_of_a_frechet_distance_tells_its_scatter_over_drawn_sets():
    chance = np.random.default_rng(1)
    reference = Reference.of(FeatureStatistics.of(chance.normal(size=(4000, 3))))
    drawn = [frechet_figure(chance.normal(size=(320, 3)) * 1.3 + 0.5, np.arange(320) % 16, reference) for _ in range(100)]
    scatter = np.std([f.value for f in drawn], ddof=1)
    told = np.mean([jackknife(f.without) for f in drawn])
    assert told == pytest.approx(scatter, rel=0.2)


# --- the list of orderings and what is trained for it


def test_every_ordering_of_the_paper_has_a_comparison_in_the_papers_order():
    assert [(o.key, o.claim) for o in ORDERINGS[: len(PAPER_ORDERINGS)]] == [(key, claim) for key, claim, _ in PAPER_ORDERINGS]


def test_every_comparison_is_of_figures_that_its_variants_leave():
    metrics = (FRECHET, SIMILARITY, "perceptual")
    left = {name: {address(FINAL, *cell, m) for cell in v.cells for m in metrics} for name, v in VARIANTS.items()}
    for ordering in ORDERINGS:
        for side in (ordering.comparison.better, ordering.comparison.worse):
            assert side.address in left[side.variant], ordering.key


def test_the_shapes_of_the_papers_base_are_its_baseline_and_its_no_patching():
    assert shapes(configs.base()) == (configs.base(), configs.base_no_patch())


@pytest.mark.parametrize("name", ["tiny", "small", "base", "final"])
def test_no_patching_differs_by_the_finest_stage(name):
    patched, unpatched = shapes(preset(name).train.denoiser)
    assert (patched.patch_px, unpatched.patch_px) == (2, 1)
    assert unpatched.stages[1:] == patched.stages


def test_no_patching_costs_more():
    patched, unpatched = shapes(preset("tiny").train.denoiser)
    assert training_flops(unpatched) > training_flops(patched)


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_variants_differ_from_the_baseline_in_what_they_are_called_for_alone(name):
    made = preset(name)
    configs_of = {v: train_config(VARIANTS[v], made, ENCODER, budget=600, points=3, seed=7) for v in VARIANTS}
    base = configs_of["baseline"]
    assert configs_of["unfiltered"] == base
    assert configs_of["film"].denoiser.conditioning == "film"
    assert configs_of["higher_rate"].optimizer.learning_rate == 2 * base.optimizer.learning_rate
    assert configs_of["no_patching"].optimizer == base.optimizer == configs_of["film"].optimizer
    assert configs_of["improved"].denoiser == configs_of["no_patching"].denoiser
    assert len({c.num_steps * c.batch_size for c in configs_of.values()}) == 1
    assert {c.seed for c in configs_of.values()} == {7}
    assert all(c.optimizer.cooldown_steps == 0 for c in configs_of.values())


def test_the_average_of_a_short_training_reaches_back_over_a_part_of_it_and_that_of_a_long_one_is_the_presets():
    def decay(budget):
        return train_config(VARIANTS["baseline"], preset("base"), ENCODER, budget=budget, points=1, seed=0).ema.decay

    assert decay(600) == pytest.approx(0.995)
    assert decay(300_000) == 0.9999


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


# --- results on disk and their table


def leave(out, variant, seed, value, work="w", **cells):
    path = result_path(out, variant, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {address(FINAL, "pictures", "held_out", 0, FRECHET): value, **{k: v for k, v in cells.items()}}
    values = {
        "format": 1,
        "work": work,
        "variant": variant,
        "seed": seed,
        "settings": {"preset": "tiny", "budget": 20, "sampling_steps": 4, "perceptual": "none"},
        "sizes": {"held_out": [4, 8, 2]},
        "encoder": "an encoder",
        "figures": {k: {"value": v, "without": [v - 0.1, v + 0.1]} for k, v in found.items()},
        "cost": {"gflop_an_image": 0.5, "images_seen": 640},
    }
    path.write_text(json.dumps(values))
    return path


def test_a_result_of_the_same_work_is_found_again_and_one_of_other_work_refused(tmp_path):
    path = leave(tmp_path, "film", 0, 3.0)
    assert finished(path, "w")
    assert not finished(result_path(tmp_path, "film", 1), "w")
    with pytest.raises(DataError, match="other settings"):
        finished(path, "another")


def test_results_of_two_budgets_are_never_in_one_table(tmp_path):
    leave(tmp_path, "film", 0, 3.0)
    path = leave(tmp_path, "baseline", 0, 3.0)
    path.write_text(path.read_text().replace('"budget": 20', '"budget": 40'))
    with pytest.raises(DataError, match="budget is 40 and 20"):
        read_figures(tmp_path)


@pytest.mark.parametrize("words", [["--budget", "0"], ["--num", "1"], ["--points", "0"]])
def test_a_budget_that_trains_or_measures_nothing_is_refused_in_one_line(tmp_path, capsys, words):
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert re.search(rf"error: {words[0]} must be at least \d, got {words[1]}\n", capsys.readouterr().out)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 99}'])
def test_a_file_that_is_no_result_is_named(tmp_path, content):
    path = tmp_path / "film-0.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"film-0\.json"):
        read_result(path)


def test_the_table_says_what_the_results_hold_and_what_was_not_run(tmp_path):
    early = "10/pictures/held_out/w0/frechet"
    for seed, shift in enumerate((0.0, 20.0, 40.0)):
        leave(tmp_path, "baseline", seed, 90 + shift, **{early: 150.0})
        leave(tmp_path, "film", seed, 99 + shift, **{early: 140.0})
        leave(tmp_path, "unfiltered", seed, 70 + shift)
    figures, results = read_figures(tmp_path)
    verdicts = {ordering.key: verdict for ordering, _, verdict in judged(figures, ORDERINGS)}
    assert verdicts["cross_attention_beats_film"] == HOLDS
    assert verdicts["filtered_beats_unfiltered"] == FAILS
    assert verdicts["one_shot_beats_copy"] == verdicts["dinov2_beats_siglip_with_cross_attention"] == NOT_RUN
    assert mean_over_seeds(figures, Place("film", early)) == (140.0, 0.0, 3)
    rows = {row.name: row for row in measured_rows(figures, results)}
    assert rows["cross_attention_beats_film"].figure == pytest.approx(9)
    assert rows["cross_attention_beats_film"].holds is True
    assert rows["filtered_beats_unfiltered"].holds is False
    assert "one_shot_beats_copy" not in rows
    assert rows["ranking at step 10 against the last"].figure == -1
    text = written(figures, results)
    assert "needs a run of the same pictures encoded with SigLIP" in text
    assert all(ordering.claim in text for ordering in ORDERINGS)


def test_rankings_are_alike_by_the_share_of_pairs_that_stand_alike():
    assert ranks_alike({"a": 1, "b": 2, "c": 3}, {"a": 10, "b": 20, "c": 30}) == 1
    assert ranks_alike({"a": 1, "b": 2, "c": 3}, {"a": 3, "b": 2, "c": 1}) == -1
    assert ranks_alike({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "c": 2}) == pytest.approx(1 / 3)


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
    loader = PairLoader(run.encodings, selection, seed=0, batch_size=8, num_lanes=2, resolution_px=16)
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
