"""DDIM, its inversion and DPM-Solver++ against the probability flow, which is known in closed form for Gaussians."""

from itertools import pairwise

import pytest
import torch

from semantica.diffusion.guidance import guided
from semantica.diffusion.process import diffuse
from semantica.diffusion.samplers import ddim, ddim_invert, ddim_step, dpm_solver, step_levels
from semantica.diffusion.schedule import alpha_sigma
from semantica.diffusion.settings import ScheduleConfig
from tests.diffusion.oracles import (
    BIND,
    SCHEDULE,
    conditioning,
    gaussian_denoiser,
    levels,
    mixture_denoiser,
    normal,
    two_point_denoiser,
)

MEAN, STD = 0.3, 0.5
ALPHA, SIGMA = alpha_sigma(levels(-15.0))
SPREAD = ((ALPHA * STD) ** 2 + SIGMA**2).sqrt()  # the std of z at t = 1
COND = conditioning(4)


def levels_of(num_steps, spacing="logsnr", schedule=SCHEDULE):
    return step_levels(schedule, num_steps, spacing)


def draw(sampler, denoise, z, num_steps, clip=False):
    return sampler(denoise, z, levels_of(num_steps), clip=clip)


def test_a_ddim_step_with_the_true_x_moves_along_its_eps():
    x, eps = normal((4, 3, 2, 2), 0), normal((4, 3, 2, 2), 1)
    t, s = levels([-15.0, -3.0, 1.0, 14.9]), levels([-14.9, 2.0, 9.0, 15.0])
    torch.testing.assert_close(ddim_step(diffuse(x, eps, t), x, t, s), diffuse(x, eps, s), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpm_solver, 2)])
def test_solvers_reach_the_flow_of_a_gaussian_with_their_order(sampler, order):
    """The flow keeps (z - alpha mean) / std(z). Twice the steps halve DDIM's distance to it, and quarter DPM-Solver++'s."""
    z = normal((4, 3, 4, 4), 2)
    exact = MEAN + STD * (z - ALPHA * MEAN) / SPREAD
    errors = [(draw(sampler, gaussian_denoiser(MEAN, STD), z, n) - exact).abs().max().item() for n in (80, 160, 320, 640)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.1)
    assert errors[-1] < {1: 0.02, 2: 1e-4}[order]


def test_second_order_needs_a_tenth_of_the_steps():
    z = normal((4, 3, 4, 4), 2)
    exact = MEAN + STD * (z - ALPHA * MEAN) / SPREAD
    slow, fast = ((draw(s, gaussian_denoiser(MEAN, STD), z, n) - exact).abs().max() for s, n in ((ddim, 400), (dpm_solver, 40)))
    assert fast < slow


@pytest.mark.parametrize("sampler", [ddim, dpm_solver])
def test_the_flow_keeps_the_quantiles_of_two_points(sampler):
    """A pixel ends at 1 where z lies above the 30% quantile of its distribution at t = 1, when 30% are -1."""
    z = normal((4, 3, 32, 32), 3)
    below = 0.3 * torch.special.ndtr((z + ALPHA) / SIGMA) + 0.7 * torch.special.ndtr((z - ALPHA) / SIGMA)
    away = (below - 0.3).abs() > 0.01  # at the border a step decides
    x = draw(sampler, two_point_denoiser(0.7), z, 200)
    assert torch.equal((x > 0)[away], (below > 0.3)[away])
    assert away.double().mean() > 0.97


def test_the_first_and_the_last_step_of_dpm_solver_are_those_of_ddim():
    z = normal((4, 3, 4, 4), 2)
    denoise = mixture_denoiser([-0.5, 0.5], [0.1, 0.2], [0.5, 0.5])
    assert torch.equal(draw(dpm_solver, denoise, z, 2), draw(ddim, denoise, z, 2))
    assert not torch.equal(draw(dpm_solver, denoise, z, 3), draw(ddim, denoise, z, 3))


def test_steps_equal_in_logsnr_are_nearer_for_pictures_at_256_px():
    """Modes of a picture have stds from 100 to 0.01. Of 64 steps in t too few are left for the fine ones; 8 in logsnr do better."""
    std = torch.logspace(2, -2, 24, dtype=torch.float64).reshape(1, 3, 2, 4)
    z = torch.ones_like(std)
    exact = std * z / ((ALPHA * std) ** 2 + SIGMA**2).sqrt()

    def denoise(z, logsnr):
        alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
        return alpha * std**2 / ((alpha * std) ** 2 + sigma**2) * z

    def error(num_steps, spacing):
        x = dpm_solver(denoise, z, levels_of(num_steps, spacing, ScheduleConfig(resolution_px=256)), clip=False)
        return (x / exact - 1).square().mean().sqrt().item()

    assert error(64, "t") > 0.4
    assert error(8, "logsnr") < 0.1
    assert error(32, "logsnr") < 0.015


# Inversion

THREE = mixture_denoiser([-0.7, 0.0, 0.6], [0.05, 0.1, 0.05], [0.3, 0.3, 0.4])


def pictures_of_three():
    which = torch.randint(3, (4, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    return levels([-0.7, 0.0, 0.6])[which] + levels([0.05, 0.1, 0.05])[which] * normal((4, 3, 4, 4), 1)


def back_and_forth(denoise, x, num_iterations, num_steps=50, clip=False):
    """The largest error of x drawn again from its z."""
    z = ddim_invert(denoise, x, levels_of(num_steps), clip=clip, num_iterations=num_iterations)
    return (draw(ddim, denoise, z, num_steps, clip) - x).abs().max().item()


def test_a_picture_comes_back_from_its_z():
    """The stated error. Plain inversion, at a tenth of the cost, is a hundred times further off."""
    x = pictures_of_three()
    assert back_and_forth(THREE, x, 10) < 1e-4
    assert back_and_forth(THREE, x, 1) > 1e-2
    assert back_and_forth(THREE, x, 20) < 1e-8


def test_a_picture_between_the_ends_comes_back_when_x_hat_is_clipped():
    assert back_and_forth(THREE, pictures_of_three().clamp(-1, 1), 10, clip=True) < 1e-4


def test_a_picture_comes_back_under_guidance_and_in_float32():
    x = normal((4, 3, 4, 4), 5).float() / 2
    assert back_and_forth(guided(BIND, COND, 1.5), x, 10) < 1e-5


def test_inversion_of_a_gaussian_is_the_flow_backwards():
    """z = alpha mean + std(z) (x - mean) / std at t = 1, reached with first order."""
    x = MEAN + STD * normal((4, 3, 4, 4), 6)
    exact = ALPHA * MEAN + SPREAD * (x - MEAN) / STD
    errors = []
    for num_steps in (100, 200, 400):
        z = ddim_invert(gaussian_denoiser(MEAN, STD), x, levels_of(num_steps), clip=False)
        errors.append((z - exact).abs().max().item())
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.1)


def test_inversion_calls_the_denoiser_once_an_iteration():
    rows = []

    def counting(z, logsnr):
        rows.append(len(z))
        return THREE(z, logsnr)

    ddim_invert(counting, pictures_of_three(), levels_of(7), num_iterations=3)
    assert rows == [4] * 21


# From a level between


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpm_solver, 2)])
def test_a_run_that_begins_at_a_level_between_follows_the_flow_from_there(sampler, order):
    """z at logsnr 0 of a Gaussian goes to mean + std (z - alpha mean) / std(z), as the flow of the whole run does."""
    alpha, sigma = alpha_sigma(levels(0.0))
    spread = ((alpha * STD) ** 2 + sigma**2).sqrt()
    z = alpha * MEAN + spread * normal((4, 3, 4, 4), 2)
    exact = MEAN + STD * (z - alpha * MEAN) / spread
    errors = []
    for num_steps in (160, 320):
        upper = levels_of(num_steps)[num_steps // 2 :]
        assert upper[0] == 0
        errors.append((sampler(gaussian_denoiser(MEAN, STD), z, upper, clip=False) - exact).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_inversion_to_a_level_between_is_undone_from_there():
    x, upper = pictures_of_three(), levels_of(50)[25:]
    z = ddim_invert(THREE, x, upper, clip=False)
    assert (ddim(THREE, z, upper, clip=False) - x).abs().max() < 1e-4
    assert (z - x).abs().max() > 0.1
