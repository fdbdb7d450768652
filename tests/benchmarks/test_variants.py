"""The list of orderings and what is trained for it: variants that differ in what they are called for alone."""

import pytest

from benchmarks.variants import FINAL, FRECHET, ORDERINGS, SIMILARITY, VARIANTS, address, train_config
from semantica.denoiser import configs
from semantica.denoiser.configs import shapes
from semantica.denoiser.sizes import training_flops
from semantica.presets import preset
from semantica.report.paper import ORDERINGS as PAPER_ORDERINGS

ENCODER = {"token_dim": 384, "num_tokens": 65, "pooled_dim": 384}


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
