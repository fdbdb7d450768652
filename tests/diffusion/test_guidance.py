"""Guidance as identities: plain w, each refinement with its identity setting and its defining property, and what they cost."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from semantica.config import from_dict, to_dict
from semantica.diffusion.guidance import GuidanceConfig, guided, projected, requested, rescaled, shortened, thresholded
from semantica.diffusion.process import denoise_with, eps_from_x, v_from_x
from semantica.diffusion.samplers import SamplerConfig, ddim, ddpm, dpm_solver
from semantica.diffusion.samplers.contract import step_levels
from semantica.errors import ConfigError
from tests.diffusion.oracles import SCHEDULE, Preparing, conditioning, levels, linear_network, noise_like, normal

NETWORK = denoise_with(linear_network)
LEVELS = levels([-2.0, 0.0, 2.0])


class Counting:
    def __init__(self):
        self.batches = []

    def __call__(self, z, logsnr, cond):
        self.batches.append(len(z))
        return NETWORK(z, logsnr, cond)


@pytest.fixture
def z():
    return normal((3, 3, 4, 4), 8)


@pytest.fixture
def cond():
    return conditioning(3)


@pytest.fixture
def branches(z, cond):
    """(conditional, unconditional)."""
    return NETWORK(z, LEVELS, cond), NETWORK(z, LEVELS, cond.null())


def norms(update):
    return update.square().sum((1, 2, 3)).sqrt()


def dots(one, other):
    return (one * other).sum((1, 2, 3))


# Plain


def test_no_guidance_is_the_conditional_model_bit_for_bit_in_one_call(z, cond):
    every = GuidanceConfig(interval=(-1.0, 1.0), parallel=0.0, max_norm=0.1, momentum=-0.5, rescale=0.7)
    for config in (GuidanceConfig(), every):
        counting = Counting()
        assert torch.equal(guided(counting, 0.0, config)(z, LEVELS, cond), NETWORK(z, LEVELS, cond))
        assert counting.batches == [3]


def test_guidance_combines_both_branches_from_one_call(z, cond, branches):
    counting = Counting()
    out = guided(counting, 0.5)(z, LEVELS, cond)
    assert counting.batches == [6]
    torch.testing.assert_close(out, 1.5 * branches[0] - 0.5 * branches[1])


def test_guidance_agrees_in_x_v_and_eps(z, cond):
    """Before clipping it does not matter which prediction is combined."""
    w = 1.5
    x = guided(NETWORK, w)(z, LEVELS, cond)
    for convert in (v_from_x, eps_from_x):
        conditional, unconditional = (convert(z, NETWORK(z, LEVELS, branch), LEVELS) for branch in (cond, cond.null()))
        torch.testing.assert_close(convert(z, x, LEVELS), (1 + w) * conditional - w * unconditional)


def test_guidance_of_null_rows_is_the_unconditional_model(z, cond):
    torch.testing.assert_close(guided(NETWORK, 1.0)(z, LEVELS, cond.null()), NETWORK(z, LEVELS, cond.null()))


@pytest.mark.parametrize("identity", [{"interval": (-20.0, 20.0)}, {"parallel": 1.0}, {"momentum": 0.0}, {"rescale": 0.0}])
def test_a_refinement_with_its_identity_setting_is_plain_guidance_bit_for_bit(z, cond, identity):
    assert torch.equal(guided(NETWORK, 1.5, GuidanceConfig(**identity))(z, LEVELS, cond), guided(NETWORK, 1.5)(z, LEVELS, cond))


# A requested similarity


@pytest.fixture
def asking(cond):
    """The middle row asks for no similarity."""
    return replace(cond, similarity=torch.tensor([0.2, float("nan"), 0.9], dtype=torch.float64))


def unasked(cond):
    return cond.of_any_similarity(torch.ones(len(cond), dtype=torch.bool))


def test_a_request_of_weight_zero_is_guided_like_the_images_bit_for_bit(z, asking):
    off = GuidanceConfig(request=0.0)
    assert torch.equal(guided(NETWORK, 0.0, off)(z, LEVELS, asking), NETWORK(z, LEVELS, asking))
    expected = 2.5 * NETWORK(z, LEVELS, asking) - 1.5 * NETWORK(z, LEVELS, asking.null())
    assert torch.equal(guided(NETWORK, 1.5, off)(z, LEVELS, asking), expected)


def test_where_no_similarity_is_requested_its_guidance_changes_and_costs_nothing(z, cond):
    for w in (0.0, 1.5):
        counting = Counting()
        out = guided(counting, w, GuidanceConfig(request=2.0))(z, LEVELS, cond)
        assert torch.equal(out, guided(NETWORK, w, GuidanceConfig(request=0.0))(z, LEVELS, cond))
        assert counting.batches == [3 if w == 0 else 6]


def test_a_request_costs_one_row_for_each_that_asks_in_the_same_call(z, asking):
    for w, rows in ((0.0, 5), (1.5, 8)):
        counting = Counting()
        guided(counting, w, GuidanceConfig(request=2.0))(z, LEVELS, asking)
        assert counting.batches == [rows]


def test_a_request_is_guided_by_itself_over_the_guided_images(z, asking):
    """unconditional + (1 + w) (images - unconditional) + (1 + w) (1 + s) (both - images), row by row."""
    w, s = 1.5, 2.0
    both, images, nothing = (NETWORK(z, LEVELS, c) for c in (asking, unasked(asking), asking.null()))
    expected = nothing + (1 + w) * (images - nothing) + (1 + w) * (1 + s) * (both - images)
    torch.testing.assert_close(guided(NETWORK, w, GuidanceConfig(request=s))(z, LEVELS, asking), expected)
    torch.testing.assert_close(requested(NETWORK, s)(z, LEVELS, asking), images + (1 + s) * (both - images))


def test_a_run_prepares_a_requested_similarity_once(z, asking):
    network = Preparing()
    denoise = guided(denoise_with(network), 1.5, GuidanceConfig(request=2.0))
    ddpm(denoise, asking, z, SCHEDULE, SamplerConfig(num_steps=10), noise_like(z, 9))
    assert network.prepared == [8]
    assert len(network.called) == 10


# Interval


def test_an_interval_asks_for_both_branches_only_inside_it(z, cond):
    """Rows of the network counted over a run: 2 B at the levels inside, B at the others."""
    counting, config = Counting(), SamplerConfig(num_steps=20)
    denoise = guided(counting, 1.5, GuidanceConfig(interval=(-3.0, 4.0)))
    ddpm(denoise, cond, z, SCHEDULE, config, noise_like(z, 9))
    walked = step_levels(SCHEDULE, 20, "t")[:-1]
    expected = [6 if -3 <= level <= 4 else 3 for level in walked.tolist()]
    assert counting.batches == expected
    assert 0 < expected.count(6) < 20


def test_an_interval_holds_for_every_row_by_itself(z, cond):
    """Rows inside are guided, rows outside conditional, bit for bit; both ends belong to it."""
    out = guided(NETWORK, 1.5, GuidanceConfig(interval=(0.0, 2.0)))(z, LEVELS, cond)
    assert torch.equal(out[1:], guided(NETWORK, 1.5)(z, LEVELS, cond)[1:])
    assert torch.equal(out[:1], NETWORK(z, LEVELS, cond)[:1])
    assert not torch.equal(out[1:], NETWORK(z, LEVELS, cond)[1:])


# Projection


@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_projection_scales_what_is_along_the_picture_and_keeps_what_is_across(z, cond, branches, eta):
    w, (conditional, unconditional) = 1.5, branches
    update = conditional - unconditional
    moved = (guided(NETWORK, w, GuidanceConfig(parallel=eta))(z, LEVELS, cond) - conditional) / w
    torch.testing.assert_close(dots(moved, conditional), eta * dots(update, conditional))
    across = normal(update.shape, 3)
    across = across - (dots(across, conditional) / dots(conditional, conditional))[:, None, None, None] * conditional
    torch.testing.assert_close(dots(moved, across), dots(update, across))


def test_an_update_along_the_picture_vanishes_and_a_black_picture_projects_nothing(branches):
    conditional, _ = branches
    torch.testing.assert_close(projected(3 * conditional, conditional, 0.0), 0 * conditional)
    assert torch.equal(projected(conditional, 0 * conditional, 0.0), conditional)


def test_long_updates_are_shortened_and_short_ones_stay_bit_for_bit(branches):
    update = (branches[0] - branches[1]) * levels([0.1, 1.0, 10.0])[:, None, None, None]
    limit = norms(update)[1].item() * 1.0001
    short = shortened(update, limit)
    assert torch.equal(short[:2], update[:2])
    torch.testing.assert_close(norms(short[2:]), levels([limit]))
    torch.testing.assert_close(short[2] / limit, update[2] / norms(update)[2])


def test_momentum_adds_the_updates_of_the_steps_before(z, cond):
    """The update of step k is sum over j <= k of beta^(k - j) times the plain one of step j, the recurrence written out."""
    beta, w, config = -0.5, 1.5, GuidanceConfig(momentum=-0.5)
    denoise = guided(NETWORK, w, config)
    plain = []
    for level in (-8.0, -3.0, 0.0, 5.0):
        at = levels([level] * 3)
        conditional = NETWORK(z, at, cond)
        plain.append(conditional - NETWORK(z, at, cond.null()))
        total = sum(beta ** (len(plain) - 1 - j) * update for j, update in enumerate(plain))
        torch.testing.assert_close(denoise(z, at, cond), conditional + w * total)


def test_momentum_starts_anew_with_every_run_and_conditioning(z, cond):
    """Two runs of one Denoise, the second again from t = 1 and the third with other conditions, are those of new ones."""
    denoise, config = guided(NETWORK, 1.5, GuidanceConfig(momentum=-0.5)), SamplerConfig(num_steps=6, clip=False)
    for rows in (cond, cond, conditioning(3, seed=5)):
        fresh = guided(NETWORK, 1.5, GuidanceConfig(momentum=-0.5))
        found, expected = (ddpm(d, rows, z, SCHEDULE, config, noise_like(z, 9)) for d in (denoise, fresh))
        assert torch.equal(found, expected)
    assert not torch.equal(expected, ddpm(guided(NETWORK, 1.5), rows, z, SCHEDULE, config, noise_like(z, 9)))


def test_momentum_is_not_carried_to_other_conditions_at_a_later_level(z, cond):
    denoise, other = guided(NETWORK, 1.5, GuidanceConfig(momentum=-0.5)), conditioning(3, seed=5)
    denoise(z, LEVELS, cond)
    torch.testing.assert_close(denoise(z, LEVELS + 1, other), guided(NETWORK, 1.5)(z, LEVELS + 1, other))


# Rescale


def test_rescaling_gives_every_picture_the_conditional_contrast(z, cond, branches):
    out = guided(NETWORK, 1.5, GuidanceConfig(rescale=1.0))(z, LEVELS, cond)
    torch.testing.assert_close(out.std((1, 2, 3)), branches[0].std((1, 2, 3)))
    plain = guided(NETWORK, 1.5)(z, LEVELS, cond)
    assert (plain.std((1, 2, 3)) / branches[0].std((1, 2, 3)) - 1).abs().min() > 1e-3
    half = guided(NETWORK, 1.5, GuidanceConfig(rescale=0.5))(z, LEVELS, cond)
    torch.testing.assert_close(half, (out + plain) / 2)


def test_rescaling_leaves_a_picture_of_one_colour(branches):
    grey = torch.full_like(branches[0], 0.25)
    torch.testing.assert_close(rescaled(grey, grey, 0.7), grey)


# Dynamic thresholding


def test_thresholding_brings_the_quantile_to_one(cond):
    """x_hat of std 3: nothing leaves [-1, 1], a tenth lies at its ends, the rest keeps its proportions."""
    x_hat = 3 * normal((3, 3, 16, 16), 10)
    out = thresholded(lambda *_: x_hat, 0.9)(x_hat, LEVELS, cond)
    assert out.abs().max() == 1
    share = (out.abs() == 1).double().mean((1, 2, 3))
    torch.testing.assert_close(share, torch.full_like(share, 0.1), rtol=0, atol=2 / 768)
    ratio = (out / x_hat).flatten(1)
    inside = out.flatten(1).abs() < 1
    for row in range(3):
        torch.testing.assert_close(ratio[row][inside[row]], ratio[row].max().expand(int(inside[row].sum())))


def test_thresholding_leaves_pictures_in_range_bit_for_bit(z, cond):
    x_hat = normal((3, 3, 4, 4), 11).tanh()
    assert torch.equal(thresholded(lambda *_: x_hat, 0.995)(z, LEVELS, cond), x_hat)


def test_thresholding_with_few_pixels_out_of_range_is_the_clip(z, cond):
    x_hat = normal((3, 3, 4, 4), 11).tanh()
    x_hat[:, 0, 0, 0] = 7.0
    assert torch.equal(thresholded(lambda *_: x_hat, 0.9)(z, LEVELS, cond), x_hat.clamp(-1, 1))


def test_after_thresholding_the_clip_of_the_sampler_changes_nothing(z, cond):
    denoise = guided(lambda *args: 4 * NETWORK(*args), 1.5, GuidanceConfig(threshold=0.9))
    one, other = (
        ddim(denoise, cond, z, SCHEDULE, SamplerConfig(num_steps=6, clip=clip), noise_like(z, 9)) for clip in (True, False)
    )
    assert torch.equal(one, other)


def test_thresholding_holds_without_guidance_only_when_asked_for(z, cond):
    asked = guided(NETWORK, 0.0, GuidanceConfig(threshold=0.5))(z, LEVELS, cond)
    assert torch.equal(asked, thresholded(NETWORK, 0.5)(z, LEVELS, cond))
    assert not torch.equal(asked, NETWORK(z, LEVELS, cond))


# Together


def test_refinements_compose_in_one_order(z, cond, branches):
    config = GuidanceConfig(interval=(-1.0, 3.0), parallel=0.2, max_norm=0.5, momentum=-0.5, rescale=0.7, threshold=0.8)
    conditional, unconditional = branches
    update = projected(shortened(conditional - unconditional, 0.5), conditional, 0.2)
    x_hat = rescaled(conditional + 1.5 * update, conditional, 0.7)
    x_hat[0] = conditional[0]  # at logsnr -2, outside
    expected = thresholded(lambda *_: x_hat, 0.8)(z, LEVELS, cond)
    torch.testing.assert_close(guided(NETWORK, 1.5, config)(z, LEVELS, cond), expected)


@pytest.mark.parametrize(("sampler", "interval"), product([ddpm, ddim, dpm_solver], [None, (-3.0, 4.0)]))
def test_a_run_prepares_each_branch_once(sampler, interval, z, cond):
    """Once for both branches, and once for the conditional one alone where an interval leaves it alone."""
    config = SamplerConfig(num_steps=10)
    for w, expected in ((0.0, [3]), (1.5, [6] if interval is None else [3, 6])):
        network = Preparing()
        x = sampler(
            guided(denoise_with(network), w, GuidanceConfig(interval=interval)), cond, z, SCHEDULE, config, noise_like(z, 9)
        )
        assert network.prepared == expected
        assert len(network.called) == 10
        plain = guided(denoise_with(linear_network), w, GuidanceConfig(interval=interval))
        assert torch.equal(x, sampler(plain, cond, z, SCHEDULE, config, noise_like(z, 9)))


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
