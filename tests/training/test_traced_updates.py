"""Adam and the average as XLA traces them, against the fused kernel and the plain average, on the CPU."""

import math

import pytest
import torch

from semantica.training.ema import Ema
from semantica.training.loop import initial_network
from semantica.training.recipe import EmaConfig, OptimizerConfig
from semantica.training.step import make_optimizer, update
from semantica.training.xla import TracedAdam, TracedEma


def updated(tiny, make, steps, bad=(), dtype=torch.float32, **settings):
    """(weights, moments and counts) after random gradients of sizes from 1e-6 to 1, at rates that change; NaN in `bad` steps."""
    network = initial_network(tiny.config()).to(dtype)
    rule = OptimizerConfig(warmup_steps=4, **settings)
    optimizer = make(network, rule)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for index, p in enumerate(network.parameters()):
            p.grad = (10.0 ** -(index % 7) * torch.randn(p.shape, generator=generator)).to(dtype)
        if step in bad:
            next(network.parameters()).grad[0] = math.nan
        update(network, optimizer, rule, rule.rate(step, steps))
    states = [optimizer.state[p] for p in network.parameters()]
    return list(network.parameters()), [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]


@pytest.mark.parametrize("settings", [{}, {"beta1": 0.0, "beta2": 0.999, "eps": 1e-3}])
@pytest.mark.parametrize("bad", [(), (0,), (2, 3, 9)])
def test_traced_adam_makes_the_updates_of_the_fused_kernel_up_to_rounding(tiny, settings, bad):
    ours, (mean, square, steps) = updated(tiny, TracedAdam, 12, bad, **settings)
    theirs, (their_mean, their_square, their_steps) = updated(tiny, make_optimizer, 12, bad, **settings)
    for a, b in ((ours, theirs), (mean, their_mean), (square, their_square)):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-8)
    assert torch.equal(torch.stack(steps), torch.stack(their_steps))
    assert {float(step) for step in steps} == {12.0}


def test_traced_adam_is_as_near_to_the_exact_updates_as_the_fused_kernel(tiny):
    """The first steps, where 1 - 0.99^n is small: in float32 the traced one would lose digits that the fused one has."""
    exact, _ = updated(tiny, make_optimizer, 3, dtype=torch.float64, learning_rate=1.0)

    def error(make):
        weights, _ = updated(tiny, make, 3, learning_rate=1.0)
        return max(float((a.detach().double() - b.detach()).abs().max()) for a, b in zip(weights, exact, strict=True))

    assert error(TracedAdam) < 2 * error(make_optimizer)


def test_traced_adam_changes_neither_weights_nor_moments_where_the_norm_is_not_finite(tiny):
    before, (mean, square, _) = updated(tiny, TracedAdam, 3)
    after, (later_mean, later_square, steps) = updated(tiny, TracedAdam, 5, bad=(3, 4))
    for a, b in ((before, after), (mean, later_mean), (square, later_square)):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert {float(step) for step in steps} == {5.0}


def test_the_traced_average_is_the_average(tiny):
    network = initial_network(tiny.config())
    settings = EmaConfig(decay=0.9, warmup=2)
    ours, plain = TracedEma(network, settings), Ema(network, settings)
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        with torch.no_grad():
            for p in network.parameters():
                p += torch.randn(p.shape, generator=generator)
        ours.update()
        plain.update()
    assert ours.num_updates == plain.num_updates
    torch.testing.assert_close(ours.values, plain.values, rtol=1e-6, atol=1e-6)
