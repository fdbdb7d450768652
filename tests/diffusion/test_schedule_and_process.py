"""The schedule's values and the identities between x, eps and v, in float64; networks of every prediction, bindings."""

import math

import pytest
import torch

from semantica.diffusion.process import (
    bind_with,
    denoise_with,
    diffuse,
    eps_from_x,
    eps_loss,
    v_from_x,
    v_target,
    x_from_eps,
    x_from_v,
)
from semantica.diffusion.schedule import alpha_sigma, logsnr, logsnr_shift
from semantica.diffusion.settings import ScheduleConfig
from semantica.errors import ConfigError, DataError
from tests.diffusion.oracles import Network, conditioning, eps_from_v, normal, v_from_eps

AT_256 = ScheduleConfig(resolution_px=256)
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture
def example():
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 16, 3, 4, 4, generator=generator, dtype=torch.float64)
    return x, eps, torch.linspace(-12, 12, 16, dtype=torch.float64)


def test_shift_at_256_px_is_minus_4_1589():
    assert logsnr_shift(AT_256) == pytest.approx(-4.1589, abs=1e-4)
    assert logsnr_shift(ScheduleConfig(resolution_px=32)) == 0


@pytest.mark.parametrize("resolution_px", [32, 64, 256, 1024])
def test_ends_are_exact_after_the_shift(resolution_px):
    ends = logsnr(torch.tensor([0.0, 1.0], dtype=torch.float64), ScheduleConfig(resolution_px=resolution_px))
    torch.testing.assert_close(ends, torch.tensor([15.0, -15.0], dtype=torch.float64), rtol=0, atol=1e-9)


def test_middle_of_the_unclipped_schedule_is_the_shifted_cosine():
    """With ends far away a = 0 and b = pi/2: logsnr(t) = -2 ln tan(pi t / 2) + shift, which is the shift itself at t = 1/2."""
    wide = ScheduleConfig(resolution_px=256, logsnr_min=-60.0, logsnr_max=60.0)
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    expected = -2 * torch.log(torch.tan(math.pi * t / 2)) + 2 * math.log(32 / 256)
    torch.testing.assert_close(logsnr(t, wide), expected, rtol=1e-9, atol=1e-9)


def test_logsnr_falls_everywhere_and_stays_inside_the_ends():
    for dtype in (torch.float64, torch.float32):
        values = logsnr(torch.linspace(0, 1, 2001, dtype=dtype), AT_256)
        assert (values.diff() < 0).all()
        assert values.abs().max() <= 15


def test_float32_schedule_is_within_a_thousandth():
    t = torch.linspace(0, 1, 10001, dtype=torch.float64)
    config = ScheduleConfig(resolution_px=32)
    assert (logsnr(t.float(), config).double() - logsnr(t, config)).abs().max() < 1e-3


def test_a_schedule_with_crossed_ends_is_refused():
    with pytest.raises(ConfigError, match="logsnr_min"):
        ScheduleConfig(resolution_px=32, logsnr_min=3.0, logsnr_max=2.0)


def test_alpha_and_sigma_preserve_variance_and_ratio(example):
    _, _, level = example
    alpha, sigma = alpha_sigma(level)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(level), **CLOSE)
    torch.testing.assert_close(torch.log(alpha**2 / sigma**2), level, **CLOSE)


def test_v_gives_back_x_and_eps(example):
    x, eps, level = example
    z, v = diffuse(x, eps, level), v_target(x, eps, level)
    torch.testing.assert_close(x_from_v(z, v, level), x, **CLOSE)
    torch.testing.assert_close(eps_from_v(z, v, level), eps, **CLOSE)


def test_v_and_eps_predictions_agree(example):
    """At one z any v_hat names one x_hat and one eps_hat, and the maps from x_hat back are the inverses."""
    x, eps, level = example
    z = diffuse(x, eps, level)
    v_hat = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_hat, eps_hat = x_from_v(z, v_hat, level), eps_from_v(z, v_hat, level)
    torch.testing.assert_close(diffuse(x_hat, eps_hat, level), z, **CLOSE)
    torch.testing.assert_close(eps_from_x(z, x_hat, level), eps_hat, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(v_from_x(z, x_hat, level), v_hat, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(x_from_eps(z, eps_hat, level), x_hat, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(v_from_eps(z, eps_hat, level), v_hat, rtol=1e-7, atol=1e-9)


def outputs(z, level, v_hat):
    """What networks of each prediction output when they mean the same."""
    return {"v": v_hat, "eps": eps_from_v(z, v_hat, level), "x": x_from_v(z, v_hat, level)}


def test_networks_that_mean_the_same_are_the_same_denoise(example):
    x, eps, level = example
    z = diffuse(x, eps, level)
    for prediction, output in outputs(z, level, normal(x.shape, 1)).items():
        denoise = denoise_with(lambda *_, output=output: output, prediction)
        torch.testing.assert_close(denoise(z, level), x_from_v(z, normal(x.shape, 1), level), rtol=1e-7, atol=1e-9)


# Loss


def test_loss_is_the_squared_error_of_eps_whatever_the_network_predicts(example):
    x, eps, level = example
    z = diffuse(x, eps, level)
    found = outputs(z, level, normal(x.shape, 1))
    direct = (eps - found["eps"]).square().mean(dim=(1, 2, 3))
    for prediction, output in found.items():
        torch.testing.assert_close(eps_loss(output, x, eps, level, prediction), direct, rtol=1e-7, atol=1e-9)


def test_loss_is_sigmoid_of_logsnr_times_the_v_loss(example):
    x, eps, level = example
    v_hat = normal(x.shape, 1)
    v_loss = (v_target(x, eps, level) - v_hat).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(eps_loss(v_hat, x, eps, level), torch.sigmoid(level) * v_loss, **CLOSE)


def test_rounding_x_hat_costs_more_near_t_0_than_knowing_nothing():
    """Why v: rounded to bfloat16, a perfect x_hat has a loss over 1 at logsnr 15, a perfect v_hat or eps_hat next to none."""
    x, eps = normal((4, 3, 16, 16), 0).clamp(-1, 1), normal((4, 3, 16, 16), 1)
    level = torch.full((4,), 15.0, dtype=torch.float64)
    perfect = {"x": x, "v": v_target(x, eps, level), "eps": eps}
    cost = {p: eps_loss(output.bfloat16().double(), x, eps, level, p).mean().item() for p, output in perfect.items()}
    assert cost["x"] > 1
    assert max(cost["v"], cost["eps"]) < 1e-4


def test_loss_of_the_target_is_zero_and_of_half_precision_is_float32(example):
    x, eps, level = example
    for prediction, target in {"v": v_target(x, eps, level), "eps": eps, "x": x}.items():
        assert eps_loss(target, x, eps, level, prediction).abs().max() == 0
        half = [tensor.to(torch.bfloat16) for tensor in (x, x, eps, level)]
        assert eps_loss(*half, prediction).dtype == torch.float32


# Binding


def test_a_binding_prepares_its_conditioning_once_for_all_steps(example):
    x, _, level = example
    network, cond = Network(), conditioning(16)
    denoise = bind_with(network)(cond)
    expected = x_from_v(x, network(x, level, network.prepare(cond)), level)
    network.prepared.clear()
    assert all(torch.equal(denoise(x, level), expected) for _ in range(3))
    assert network.prepared == []
    assert network.called == [16] * 4


def test_two_bindings_of_one_network_do_not_know_of_each_other(example):
    x, _, level = example
    network = Network()
    one, other = (bind_with(network)(conditioning(16, seed)) for seed in (1, 2))
    first = one(x, level)
    assert not torch.equal(other(x, level), first)
    assert torch.equal(one(x, level), first)


def test_gradients_reach_the_conditioning_of_a_binding_made_with_gradients_on(example):
    x, _, level = example
    cond = conditioning(16)
    cond.pooled.requires_grad_()
    grads = [torch.autograd.grad(bind_with(Network())(cond)(x, level).sum(), cond.pooled)[0] for _ in range(2)]
    assert torch.equal(*grads)
    assert grads[0].abs().min() > 0
    with torch.no_grad():
        drawn_with = bind_with(Network())(cond)
    assert not drawn_with(x, level).requires_grad


def test_z_of_other_rows_than_the_binding_is_refused(example):
    x, _, level = example
    with pytest.raises(DataError, match="z must have the 16 rows of the conditioning it is bound to, got 1"):
        bind_with(Network())(conditioning(16))(x[:1], level[:1])
