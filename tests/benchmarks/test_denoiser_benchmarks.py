"""What the denoiser's benchmarks rest on: peers of like compute that do the work, ways of drawing that agree, honest measures."""

import math
from collections import deque
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.drawing import HOUSE, PLAIN, Scene, Way, built, guided_denoise
from benchmarks.measure import in_a_process, median_of, peak_growth_mib
from benchmarks.peers import MAX_OFF, OURS, contenders, denoiser_config, gflop, nearest_width, random_conditioning, settled
from benchmarks.train_step import Training
from benchmarks.train_step import Way as TrainingWay
from semantica.denoiser.sizes import training_flops
from semantica.denoiser.uvit import UViT
from semantica.training.recipe import ComputeConfig

SHAPE = denoiser_config("tiny")


@pytest.fixture(scope="module")
def made():
    return contenders(SHAPE)


@pytest.mark.parametrize("target", [1, 10, 1000, 12345, 10**6])
@pytest.mark.parametrize("step", [1, 4, 32])
def test_the_nearest_width_is_that_of_an_exhaustive_search(target, step):
    def cost(width):
        return width**2 + 3 * width

    best = min(range(step, 2048, step), key=lambda width: abs(math.log(cost(width) / target)))
    assert nearest_width(cost, target, step) == best


def test_the_flops_of_a_pointwise_convolution_are_those_of_its_matrix_product():
    class Pointwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, z, logsnr, cond):
            return self.layer(z)

    forward = 2 * 3 * 3 * SHAPE.resolution_px**2 / 1e9
    assert gflop(Pointwise, SHAPE, training=False) == pytest.approx(forward)
    assert gflop(Pointwise, SHAPE, training=True) == pytest.approx(2 * forward)  # z asks for no gradient


def test_ours_is_counted_as_the_sizes_count_it(made):
    assert gflop(made[OURS], SHAPE, training=True) == pytest.approx(training_flops(SHAPE) / 1e9)


def test_peers_cost_what_the_denoiser_costs(made):
    costs = {name: gflop(make, SHAPE, training=True) for name, make in made.items()}
    assert len(costs) == 3
    assert all(abs(cost / costs[OURS] - 1) <= MAX_OFF for cost in costs.values())


def test_every_contender_draws_a_picture_that_depends_on_z_and_noise_level(made):
    cond = random_conditioning(SHAPE, 2, "cpu")
    z, logsnr = torch.randn(2, 3, SHAPE.resolution_px, SHAPE.resolution_px), torch.tensor([-3.0, 2.0])
    for name, make in made.items():
        network = settled(make()).eval()
        with torch.no_grad():
            out = network(z, logsnr, cond)
            assert out.shape == z.shape
            assert not torch.allclose(out, network(z.flip(0), logsnr, cond), atol=1e-3), name
            assert not torch.allclose(out, network(z, logsnr + 2, cond), atol=1e-3), name


def test_the_conditioned_peer_reads_the_tokens_of_rows_that_are_not_null(made):
    network = settled(made["diffusers UNet"]()).eval()
    z, logsnr = torch.randn(1, 3, SHAPE.resolution_px, SHAPE.resolution_px), torch.zeros(1)
    one, other = (random_conditioning(SHAPE, 1, "cpu") for _ in range(2))
    with torch.no_grad():
        assert not torch.equal(network(z, logsnr, one), network(z, logsnr, other))
        assert torch.equal(network(z, logsnr, one.null()), network(z, logsnr, other.null()))


def test_a_training_step_moves_every_weight_and_the_average_of_every_contender(made):
    for name, make in made.items():
        training = Training(make(), TrainingWay(name, ComputeConfig()), SHAPE, 16, "cpu")  # of 16 rows some are null
        before = {key: value.detach().clone() for key, value in training.network.named_parameters()}
        training()
        training()  # the first step starts the average at the weights' own place
        after = dict(training.network.named_parameters())
        assert [key for key in before if torch.equal(before[key], after[key])] == [], name
        assert all(not torch.equal(before[key], training.ema.values[key]) for key in before), name


def test_all_ways_of_drawing_give_one_guided_x_hat_and_call_the_network_as_they_say():
    scene = Scene("tiny", 3, 2, "cpu", torch.float32)
    network = built(HOUSE, lambda: UViT(SHAPE), scene)
    rows, prepared = [], []
    network.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    network.tokens.register_forward_pre_hook(lambda module, arguments: prepared.append(len(arguments[0].present)))
    cond, z, logsnr = scene.conditioning(), torch.randn(3, 3, 32, 32), torch.tensor([-4.0, 0.0, 4.0])
    expected = {
        Way(): ([3, 3] * 2, [3, 3] * 2),
        Way(one_batch=True): ([6, 6], [6, 6]),
        Way(once=True): ([3, 3] * 2, [3, 3]),
        Way(one_batch=True, once=True): ([6, 6], [6]),
    }
    drawn = {}
    for way, calls in expected.items():
        rows.clear(), prepared.clear()
        with torch.no_grad():
            denoise = guided_denoise(network, way, cond)
            drawn[way] = [denoise(z, logsnr), denoise(z, logsnr)][1]
        assert (rows, prepared) == calls, way.label
    for way, x_hat in drawn.items():
        torch.testing.assert_close(x_hat, drawn[PLAIN], atol=1e-5, rtol=1e-5, msg=way.label)


def test_a_ratio_is_the_median_of_the_ratios_of_rounds():
    assert median_of([1.0, 2.0, 30.0], [1.0, 1.0, 10.0], 2.0) == 4.0


def test_growth_of_memory_is_what_was_allocated_at_the_peak():
    each_gone_before_the_next = map(torch.ones, (48 * 2**18, 64 * 2**18))  # 48 and 64 MiB
    assert 62 < in_a_process(peak_growth_mib, partial(deque, each_gone_before_the_next, 0)) < 72
