"""The refinements of guidance: each by its defining property, and all of them in one order."""

import pytest
import torch

from semantica.diffusion.guidance import guided, projected, rescaled, shortened, thresholded
from semantica.diffusion.process import bind_with
from semantica.diffusion.samplers import ddim, ddpm, step_levels
from semantica.diffusion.settings import GuidanceConfig
from tests.diffusion.oracles import BIND, LEVELS, SCHEDULE, Network, conditioning, levels, noise_like, normal, x_hat_of


def norms(update):
    return update.square().sum((1, 2, 3)).sqrt()


def dots(one, other):
    return (one * other).sum((1, 2, 3))


# Projection


@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_projection_scales_what_is_along_the_picture_and_keeps_what_is_across(z, cond, branches, eta):
    w, (conditional, unconditional) = 1.5, branches
    update = conditional - unconditional
    moved = (guided(BIND, cond, w, GuidanceConfig(parallel=eta))(z, LEVELS) - conditional) / w
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
    denoise = guided(BIND, cond, w, config)
    plain = []
    for level in (-8.0, -3.0, 0.0, 5.0):
        at = levels([level] * 3)
        conditional = x_hat_of(z, cond, at)
        plain.append(conditional - x_hat_of(z, cond.null(), at))
        total = sum(beta ** (len(plain) - 1 - j) * update for j, update in enumerate(plain))
        torch.testing.assert_close(denoise(z, at), conditional + w * total)


def test_momentum_starts_anew_with_every_run_of_a_binding(z, cond):
    """Two runs of one binding, the second again from t = 1, are those of two bindings."""
    momentum, levels = GuidanceConfig(momentum=-0.5), step_levels(SCHEDULE, 6, "t")
    denoise = guided(BIND, cond, 1.5, momentum)
    first, second, fresh = (
        ddpm(d, z, levels, noise_like(z, 9), clip=False) for d in (denoise, denoise, guided(BIND, cond, 1.5, momentum))
    )
    assert torch.equal(second, fresh)
    assert torch.equal(first, fresh)
    assert not torch.equal(fresh, ddpm(guided(BIND, cond, 1.5), z, levels, noise_like(z, 9), clip=False))


def test_bindings_do_not_share_their_momentum(z, cond):
    other = conditioning(3, seed=5)
    bind, momentum = bind_with(Network()), GuidanceConfig(momentum=-0.5)
    one, two = guided(bind, cond, 1.5, momentum), guided(bind, other, 1.5, momentum)
    one(z, LEVELS)
    torch.testing.assert_close(two(z, LEVELS + 1), guided(BIND, other, 1.5)(z, LEVELS + 1))
    assert not torch.equal(one(z, LEVELS + 1), guided(BIND, cond, 1.5)(z, LEVELS + 1))


# Rescale


def test_rescaling_gives_every_picture_the_conditional_contrast(z, cond, branches):
    out = guided(BIND, cond, 1.5, GuidanceConfig(rescale=1.0))(z, LEVELS)
    torch.testing.assert_close(out.std((1, 2, 3)), branches[0].std((1, 2, 3)))
    plain = guided(BIND, cond, 1.5)(z, LEVELS)
    assert (plain.std((1, 2, 3)) / branches[0].std((1, 2, 3)) - 1).abs().min() > 1e-3
    half = guided(BIND, cond, 1.5, GuidanceConfig(rescale=0.5))(z, LEVELS)
    torch.testing.assert_close(half, (out + plain) / 2)


def test_rescaling_leaves_a_picture_of_one_colour(branches):
    grey = torch.full_like(branches[0], 0.25)
    torch.testing.assert_close(rescaled(grey, grey, 0.7), grey)


# Dynamic thresholding


def test_thresholding_brings_the_quantile_to_one(cond):
    """x_hat of std 3: nothing leaves [-1, 1], a tenth lies at its ends, the rest keeps its proportions."""
    x_hat = 3 * normal((3, 3, 16, 16), 10)
    out = thresholded(lambda *_: x_hat, 0.9)(x_hat, LEVELS)
    assert out.abs().max() == 1
    share = (out.abs() == 1).double().mean((1, 2, 3))
    torch.testing.assert_close(share, torch.full_like(share, 0.1), rtol=0, atol=2 / 768)
    ratio = (out / x_hat).flatten(1)
    inside = out.flatten(1).abs() < 1
    for row in range(3):
        torch.testing.assert_close(ratio[row][inside[row]], ratio[row].max().expand(int(inside[row].sum())))


def test_thresholding_leaves_pictures_in_range_bit_for_bit(z, cond):
    x_hat = normal((3, 3, 4, 4), 11).tanh()
    assert torch.equal(thresholded(lambda *_: x_hat, 0.995)(z, LEVELS), x_hat)


def test_thresholding_with_few_pixels_out_of_range_is_the_clip(z, cond):
    x_hat = normal((3, 3, 4, 4), 11).tanh()
    x_hat[:, 0, 0, 0] = 7.0
    assert torch.equal(thresholded(lambda *_: x_hat, 0.9)(z, LEVELS), x_hat.clamp(-1, 1))


def four_times_as_far(cond):
    denoise = BIND(cond)
    return lambda z, logsnr: 4 * denoise(z, logsnr)


def test_after_thresholding_the_clip_of_the_sampler_changes_nothing(z, cond):
    denoise = guided(four_times_as_far, cond, 1.5, GuidanceConfig(threshold=0.9))
    one, other = (ddim(denoise, z, step_levels(SCHEDULE, 6, "logsnr"), clip=clip) for clip in (True, False))
    assert torch.equal(one, other)


def test_thresholding_holds_without_guidance_only_when_asked_for(z, cond):
    asked = guided(BIND, cond, 0.0, GuidanceConfig(threshold=0.5))(z, LEVELS)
    assert torch.equal(asked, thresholded(BIND(cond), 0.5)(z, LEVELS))
    assert not torch.equal(asked, x_hat_of(z, cond))


# Together


def test_refinements_compose_in_one_order(z, cond, branches):
    config = GuidanceConfig(interval=(-1.0, 3.0), parallel=0.2, max_norm=0.5, momentum=-0.5, rescale=0.7, threshold=0.8)
    conditional, unconditional = branches
    update = projected(shortened(conditional - unconditional, 0.5), conditional, 0.2)
    x_hat = rescaled(conditional + 1.5 * update, conditional, 0.7)
    x_hat[0] = conditional[0]  # at logsnr -2, outside
    expected = thresholded(lambda *_: x_hat, 0.8)(z, LEVELS)
    torch.testing.assert_close(guided(BIND, cond, 1.5, config)(z, LEVELS), expected)
