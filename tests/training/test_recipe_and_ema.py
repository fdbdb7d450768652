"""The numbers of the recipe as closed forms: learning rate, decay of the average, first step of Adam."""

import math

import pytest
import torch
from torch import nn

from semantica.errors import ConfigError
from semantica.training.ema import Ema
from semantica.training.recipe import EmaConfig, OptimizerConfig
from semantica.training.step import make_optimizer, update


def test_the_rate_warms_up_linearly_and_then_stays():
    settings = OptimizerConfig(learning_rate=8.0, warmup_steps=4)
    assert [settings.rate(step, 100) for step in range(6)] == [2, 4, 6, 8, 8, 8]
    assert settings.rate(99, 100) == 8
    assert OptimizerConfig(learning_rate=8.0, warmup_steps=0).rate(0, 100) == 8


def test_the_rate_cools_down_linearly_over_the_last_steps():
    settings = OptimizerConfig(learning_rate=8.0, warmup_steps=0, cooldown_steps=4)
    assert [settings.rate(step, 10) for step in range(4, 10)] == [8, 8, 8, 6, 4, 2]


def test_the_decay_warms_up_as_its_formula_and_stops_at_its_limit():
    settings = EmaConfig(decay=0.9, warmup=10)
    assert [settings.at(n) for n in (0, 1, 8)] == [1 / 10, 2 / 11, 9 / 18]
    assert settings.at(79) == 80 / 89  # 81 / 90 = 0.9 comes next
    assert [settings.at(n) for n in (80, 81, 10**6)] == [0.9, 0.9, 0.9]


def test_the_average_of_weights_that_jumped_once_is_its_closed_form():
    network = nn.Linear(2, 3)
    first = {name: p.detach().clone() for name, p in network.named_parameters()}
    ema = Ema(network, EmaConfig(decay=0.9999, warmup=10))
    with torch.no_grad():
        for p in network.parameters():
            p += 1
    for n in range(1, 7):
        ema.update()
        # Product over k < n of (1 + k) / (10 + k) = n! 9! / (n + 9)! of the old weights is left.
        left = math.factorial(n) * math.factorial(9) / math.factorial(n + 9)
        for name, value in ema.values.items():
            torch.testing.assert_close(value, first[name] + 1 - left)
    assert ema.num_updates == 6


def test_the_average_is_float32_whatever_the_weights_are_and_shares_no_memory():
    network = nn.Linear(2, 3).to(torch.bfloat16)
    ema = Ema(network, EmaConfig())
    assert {v.dtype for v in ema.values.values()} == {torch.float32}
    before = ema.values["weight"].clone()
    with torch.no_grad():
        network.weight += 1
    assert torch.equal(ema.values["weight"], before)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_first_step_of_adam_moves_every_weight_by_the_rate_against_its_gradient(scale):
    network = nn.Linear(3, 1, bias=False)
    before = network.weight.detach().clone()
    gradient = torch.tensor([[1.0, -2.0, 2.0]]) * scale
    network.weight.grad = gradient.clone()
    settings = OptimizerConfig()
    norm = update(network, make_optimizer(network, settings), settings, 0.125)
    assert norm == pytest.approx(3 * scale)  # before clipping to 1
    torch.testing.assert_close(network.weight.detach(), before - 0.125 * gradient.sign())
    assert network.weight.grad is None


def test_gradients_are_clipped_to_the_norm_as_a_whole():
    network = nn.Linear(2, 1)
    network.weight.grad, network.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    settings = OptimizerConfig(max_grad_norm=0.5)
    optimizer = make_optimizer(network, settings)
    assert update(network, optimizer, settings, 0.1) == pytest.approx(5)
    # The first moment after one step is (1 - beta1) of the gradient that Adam saw.
    seen = [optimizer.state[p]["exp_avg"] / (1 - settings.beta1) for p in (network.weight, network.bias)]
    torch.testing.assert_close(seen[0], torch.tensor([[0.3, 0.0]]))
    torch.testing.assert_close(seen[1], torch.tensor([0.4]))


def test_a_training_run_that_cannot_be_is_refused_by_its_field(tiny):
    for changes, field in (
        ({"batch_size": 6}, "batch_size must be a multiple of num_lanes = 4, got 6"),
        ({"num_steps": 0}, "num_steps must be positive, got 0"),
        ({"conditioning_dropout": 1.0}, "conditioning_dropout must be in"),
        ({"seed": -1}, "seed must be in"),
        ({"micro_batch_size": 0}, "micro_batch_size must be positive or None, got 0"),
        ({"max_skipped": 0}, "max_skipped must be positive, got 0"),
        ({"prefetch": -1}, "prefetch must be 0 or more, got -1"),
        ({"sample_every": 0}, "sample_every must be positive or None, got 0"),
        ({"peak_tflops": 0.0}, "peak_tflops must be positive or None, got 0.0"),
    ):
        with pytest.raises(ConfigError) as caught:
            tiny.config(**changes)
        assert str(caught.value).startswith(field)
