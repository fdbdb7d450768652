"""Guidance as identities: plain w, a requested similarity and an interval, the settings of each refinement, and what they cost."""

from itertools import product

import pytest
import torch

from semantica.conditioning.signals import SIMILARITY
from semantica.config import from_dict, to_dict
from semantica.diffusion.guidance import guided, rows_per_picture, strengthened
from semantica.diffusion.process import bind_with, eps_from_x, v_from_x
from semantica.diffusion.samplers import ddpm, sample, step_levels
from semantica.diffusion.settings import SAMPLERS, GuidanceConfig, SamplerConfig
from semantica.errors import ConfigError
from tests.diffusion.oracles import BIND, LEVELS, SCHEDULE, Network, noise_like, x_hat_of
from tests.signals import changed

# Plain


def test_no_guidance_is_the_conditional_model_bit_for_bit_in_one_call(z, cond):
    every = GuidanceConfig(interval=(-1.0, 1.0), parallel=0.0, max_norm=0.1, momentum=-0.5, rescale=0.7)
    for config in (GuidanceConfig(), every):
        network = Network()
        assert torch.equal(guided(bind_with(network), cond, 0.0, config)(z, LEVELS), x_hat_of(z, cond))
        assert network.called == [3]


def test_guidance_combines_both_branches_from_one_call(z, cond, branches):
    network = Network()
    out = guided(bind_with(network), cond, 0.5)(z, LEVELS)
    assert network.called == [6]
    torch.testing.assert_close(out, 1.5 * branches[0] - 0.5 * branches[1])


def test_guidance_agrees_in_x_v_and_eps(z, cond):
    """Before clipping it does not matter which prediction is combined."""
    w = 1.5
    x = guided(BIND, cond, w)(z, LEVELS)
    for convert in (v_from_x, eps_from_x):
        conditional, unconditional = (convert(z, x_hat_of(z, branch), LEVELS) for branch in (cond, cond.null()))
        torch.testing.assert_close(convert(z, x, LEVELS), (1 + w) * conditional - w * unconditional)


def test_guidance_of_null_rows_is_the_unconditional_model(z, cond):
    torch.testing.assert_close(guided(BIND, cond.null(), 1.0)(z, LEVELS), x_hat_of(z, cond.null()))


@pytest.mark.parametrize("identity", [{"interval": (-20.0, 20.0)}, {"parallel": 1.0}, {"momentum": 0.0}, {"rescale": 0.0}])
def test_a_refinement_with_its_identity_setting_is_plain_guidance_bit_for_bit(z, cond, identity):
    assert torch.equal(guided(BIND, cond, 1.5, GuidanceConfig(**identity))(z, LEVELS), guided(BIND, cond, 1.5)(z, LEVELS))


# A requested similarity


@pytest.fixture
def asking(cond):
    """The middle row asks for no similarity."""
    return changed(cond, similarity=torch.tensor([0.2, float("nan"), 0.9], dtype=torch.float64))


def unasked(cond):
    return cond.dropped({SIMILARITY: torch.ones(len(cond), dtype=torch.bool)})


def test_a_request_of_weight_zero_is_guided_like_the_images_bit_for_bit(z, asking):
    off = GuidanceConfig(request=0.0)
    assert torch.equal(guided(BIND, asking, 0.0, off)(z, LEVELS), x_hat_of(z, asking))
    expected = 2.5 * x_hat_of(z, asking) - 1.5 * x_hat_of(z, asking.null())
    assert torch.equal(guided(BIND, asking, 1.5, off)(z, LEVELS), expected)


def test_where_no_similarity_is_requested_its_guidance_changes_and_costs_nothing(z, cond):
    for w in (0.0, 1.5):
        network = Network()
        out = guided(bind_with(network), cond, w, GuidanceConfig(request=2.0))(z, LEVELS)
        assert torch.equal(out, guided(BIND, cond, w, GuidanceConfig(request=0.0))(z, LEVELS))
        assert network.called == [3 if w == 0 else 6]


def test_a_request_costs_one_row_for_each_that_asks_in_the_same_call(z, asking):
    for w, rows in ((0.0, 5), (1.5, 8)):
        network = Network()
        guided(bind_with(network), asking, w, GuidanceConfig(request=2.0))(z, LEVELS)
        assert network.called == [rows]


def test_a_request_is_guided_by_itself_over_the_guided_images(z, asking):
    """unconditional + (1 + w) (images - unconditional) + (1 + w) (1 + s) (both - images), row by row."""
    w, s = 1.5, 2.0
    both, images, nothing = (x_hat_of(z, c) for c in (asking, unasked(asking), asking.null()))
    expected = nothing + (1 + w) * (images - nothing) + (1 + w) * (1 + s) * (both - images)
    torch.testing.assert_close(guided(BIND, asking, w, GuidanceConfig(request=s))(z, LEVELS), expected)
    torch.testing.assert_close(strengthened(BIND, asking, {SIMILARITY: s})(z, LEVELS), images + (1 + s) * (both - images))


def test_a_run_prepares_a_requested_similarity_once(z, asking):
    network = Network()
    denoise = guided(bind_with(network), asking, 1.5, GuidanceConfig(request=2.0))
    ddpm(denoise, z, step_levels(SCHEDULE, 10, "t"), noise_like(z, 9))
    assert network.prepared == [8]
    assert len(network.called) == 10


# Interval


def test_an_interval_asks_for_both_branches_only_inside_it(z, cond):
    """Rows of the network counted over a run: 2 B at the levels inside, B at the others."""
    network, levels = Network(), step_levels(SCHEDULE, 20, "t")
    denoise = guided(bind_with(network), cond, 1.5, GuidanceConfig(interval=(-3.0, 4.0)))
    ddpm(denoise, z, levels, noise_like(z, 9))
    expected = [6 if -3 <= level <= 4 else 3 for level in levels[:-1].tolist()]
    assert network.called == expected
    assert 0 < expected.count(6) < 20


def test_an_interval_holds_for_every_row_by_itself(z, cond):
    """Rows inside are guided, rows outside conditional, bit for bit; both ends belong to it."""
    out = guided(BIND, cond, 1.5, GuidanceConfig(interval=(0.0, 2.0)))(z, LEVELS)
    assert torch.equal(out[1:], guided(BIND, cond, 1.5)(z, LEVELS)[1:])
    assert torch.equal(out[:1], x_hat_of(z, cond)[:1])
    assert not torch.equal(out[1:], x_hat_of(z, cond)[1:])


@pytest.mark.parametrize(("name", "interval"), product(SAMPLERS, [None, (-3.0, 4.0)]))
def test_a_binding_prepares_each_branch_once_and_a_run_prepares_nothing(name, interval, z, cond):
    """Once for both branches, and once for the conditional one alone where an interval leaves it alone."""
    config = SamplerConfig(name=name, num_steps=10)
    for w, expected in ((0.0, [3]), (1.5, [6] if interval is None else [6, 3])):
        network = Network()
        denoise = guided(bind_with(network), cond, w, GuidanceConfig(interval=interval))
        assert network.prepared == expected
        sample(denoise, z, SCHEDULE, noise_like(z, 9), config)
        assert network.prepared == expected
        assert len(network.called) == 10


@pytest.mark.parametrize("w", [0.0, 1.5])
@pytest.mark.parametrize("config", [GuidanceConfig(), GuidanceConfig(interval=(-0.5, 3.0)), GuidanceConfig(request=0.0)])
def test_a_picture_costs_at_most_the_rows_that_are_planned_for_it(z, asking, w, config):
    network = Network()
    guided(bind_with(network), asking, w, config)(z, LEVELS)
    rows = rows_per_picture(asking, w, config)
    assert network.called[0] <= 3 * rows
    assert rows == 1 + (w > 0) + (config.request > 0)


# Settings


def test_settings_come_from_plain_values_and_back():
    config = GuidanceConfig(interval=(-3.0, 4.0), rescale=0.7)
    assert from_dict(GuidanceConfig, {"interval": [-3.0, 4.0], "rescale": 0.7}) == config
    assert from_dict(GuidanceConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"request": -1.0},
        {"interval": (1.0, 1.0)},
        {"parallel": -0.1},
        {"parallel": 1.1},
        {"max_norm": 0.0},
        {"momentum": 1.0},
        {"momentum": -1.0},
        {"rescale": 1.1},
        {"threshold": 0.0},
        {"threshold": 1.5},
    ],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        GuidanceConfig(**changes)
