"""Every sampler against closed forms: posteriors of Gaussians, optimal denoisers of known distributions; what they share."""

import pytest
import torch

from semantica.diffusion.process import denoise_with
from semantica.diffusion.samplers import ddim, ddpm, ddpm_posterior, ddpm_step, dpm_solver, sampler_of
from semantica.diffusion.samplers.contract import step_levels
from semantica.diffusion.schedule import alpha_sigma, logsnr
from semantica.diffusion.settings import SamplerConfig, ScheduleConfig
from semantica.errors import ConfigError
from tests.diffusion.oracles import (
    SCHEDULE,
    conditioning,
    gaussian_denoiser,
    levels,
    linear_network,
    no_noise,
    noise_like,
    normal,
    two_point_denoiser,
)

SAMPLERS = (ddpm, ddim, dpm_solver)
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)

# Posterior


def test_posterior_is_the_textbook_gaussian():
    """q(z_s | z_t, x) from the product of q(z_s | x) = N(alpha_s x, sigma_s²) and q(z_t | z_s) = N(a z_s, v), by precisions."""
    z, x = normal((5, 3, 2, 2), 0), normal((5, 3, 2, 2), 1)
    t, s = levels([-14.0, -6.0, -0.5, 2.0, 9.0]), levels([-13.5, -1.0, -0.4, 3.0, 14.0])
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (alpha_sigma(level[:, None, None, None]) for level in (t, s))
    a = alpha_t / alpha_s
    v = sigma_t**2 - a**2 * sigma_s**2
    precision = 1 / sigma_s**2 + a**2 / v
    expected = (alpha_s * x / sigma_s**2 + a * z / v) / precision

    mean, small, large = ddpm_posterior(z, x, t, s)
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(small, 1 / precision, rtol=1e-9, atol=0)
    torch.testing.assert_close(large, v, rtol=1e-9, atol=0)


def test_posterior_with_the_true_x_keeps_the_marginal():
    """z_t ~ q(z_t | x) and one small-variance step give z_s ~ q(z_s | x): the mean and the variance, in closed form."""
    t, s = levels([-3.0]), levels([1.0])
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
    one, zero = torch.ones(1, 3, 1, 1, dtype=torch.float64), torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    mean, small, _ = ddpm_posterior(alpha_t * one, one, t, s)
    gain, _, _ = ddpm_posterior(one, zero, t, s)
    torch.testing.assert_close(mean, alpha_s * one)
    torch.testing.assert_close(gain**2 * sigma_t**2 + small, (sigma_s**2 * one))


@pytest.mark.parametrize("interpolation", [0.0, 0.2, 1.0])
def test_step_noise_has_the_interpolated_std(interpolation):
    z, x = normal((2, 3, 2, 2), 0), normal((2, 3, 2, 2), 1)
    t, s = levels([-5.0, 1.0]), levels([-2.0, 4.0])
    mean, small, large = ddpm_posterior(z, x, t, s)
    added = ddpm_step(z, x, t, s, torch.ones_like(z), interpolation) - mean
    expected = small.sqrt() ** interpolation * large.sqrt() ** (1 - interpolation)
    torch.testing.assert_close(added, expected.expand_as(added))


# What is drawn


def gaussian_moments(mean, std, config):
    """(mean, variance) of ddpm's output for the Gaussian's optimal denoiser: every step is affine, so both follow exactly."""
    one = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    denoise = gaussian_denoiser(mean, std)
    steps = logsnr(torch.linspace(1, 0, config.num_steps + 1, dtype=torch.float64), SCHEDULE)
    centre, variance = 0 * one, one
    for t, s in zip(steps[:-2, None], steps[1:-1, None], strict=True):

        def step(z, t=t, s=s):
            return ddpm_posterior(z, denoise(z, t, None), t, s)

        offset, small, large = step(0 * one)
        gain = step(one)[0] - offset
        centre = gain * centre + offset
        variance = gain**2 * variance + small**config.interpolation * large ** (1 - config.interpolation)
    offset = denoise(0 * one, steps[-2:-1], None)
    gain = denoise(one, steps[-2:-1], None) - offset
    return (gain * centre + offset)[0, 0].item(), (gain**2 * variance)[0, 0].item()


def test_optimal_denoiser_of_a_gaussian_recovers_it():
    """Sampled moments lie within 4 standard errors of the exact ones for 100 steps, and those tend to the Gaussian's own."""
    mean, std = 0.3, 0.5
    config = SamplerConfig(num_steps=100, clip=False)
    z = normal((100, 3, 16, 16), 2)
    x = ddpm(gaussian_denoiser(mean, std), conditioning(100), z, SCHEDULE, config, noise_like(z, 3))
    exact_mean, exact_variance = gaussian_moments(mean, std, config)
    num = x.numel()
    assert abs(x.mean().item() - exact_mean) < 4 * (exact_variance / num) ** 0.5
    assert abs(x.var().item() - exact_variance) < 4 * exact_variance * (2 / num) ** 0.5

    errors = []
    for num_steps in (64, 256, 1024):
        limit_mean, limit_variance = gaussian_moments(mean, std, SamplerConfig(num_steps=num_steps, clip=False))
        errors.append(abs(limit_variance / std**2 - 1))
        assert limit_mean == pytest.approx(mean, abs=1e-3)
    assert errors[0] < 0.02
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3


@every_sampler
def test_two_point_mixture_is_recovered(sampler):
    """Every pixel ends at -1 or 1, in the right proportion within 4 standard errors (binomial)."""
    z = normal((50, 3, 16, 16), 4)
    x = sampler(two_point_denoiser(0.7), conditioning(50), z, SCHEDULE, SamplerConfig(num_steps=200), noise_like(z, 5))
    assert ((x.abs() - 1).abs() < 1e-3).double().mean() > 0.999
    assert abs((x > 0).double().mean().item() - 0.7) < 4 * (0.7 * 0.3 / x.numel()) ** 0.5


# What all have in common


def test_a_config_names_its_sampler():
    assert [sampler_of(SamplerConfig(name=name)) for name in ("ddpm", "ddim", "dpm_solver")] == list(SAMPLERS)


@every_sampler
def test_one_step_returns_the_denoised_noise_and_asks_for_no_noise(sampler):
    z = normal((2, 3, 4, 4), 6)
    x = sampler(gaussian_denoiser(0.1, 0.5), conditioning(2), z, SCHEDULE, SamplerConfig(num_steps=1), no_noise)
    torch.testing.assert_close(x, gaussian_denoiser(0.1, 0.5)(z, levels([-15.0, -15.0]), None))


@every_sampler
@pytest.mark.parametrize("spacing", ["t", "logsnr"])
def test_the_denoiser_sees_the_levels_of_the_spacing(sampler, spacing):
    """Equal steps in t or in logsnr, from t = 1, without t = 0; the paper's for ddpm when none is named, logsnr for the others."""
    t = torch.linspace(1, 0, 6, dtype=torch.float64)
    expected = {"t": logsnr(t, SCHEDULE), "logsnr": 15 - 30 * t}[spacing][:-1]
    named = {spacing, None} if (sampler is ddpm) == (spacing == "t") else {spacing}
    for name in named:
        seen = []

        def watch(z, level, cond, seen=seen):
            seen.append(level)
            return 0 * z

        z = normal((2, 3, 4, 4), 6)
        sampler(watch, conditioning(2), z, SCHEDULE, SamplerConfig(num_steps=5, spacing=name), noise_like(z, 7))
        torch.testing.assert_close(torch.stack(seen), expected[:, None].expand(5, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spacing", ["t", "logsnr"])
def test_levels_end_where_the_schedule_does_and_rise(spacing):
    found = step_levels(ScheduleConfig(resolution_px=256, logsnr_min=-10.0, logsnr_max=12.0), 20, spacing)
    torch.testing.assert_close(found[[0, -1]], levels([-10.0, 12.0]))
    assert (found.diff() > 0).all()


@every_sampler
def test_x_hat_is_clipped_at_every_step_only_when_asked(sampler):
    z, seen = normal((2, 3, 4, 4), 6), []

    def watch(step):
        seen.append(step.x_hat.abs().max().item())
        return step.z

    for clip in (True, False):
        seen.clear()
        config = SamplerConfig(num_steps=5, clip=clip)
        x = sampler(lambda z, *_: 3 + 0 * z, conditioning(2), z, SCHEDULE, config, noise_like(z, 7), watch)
        assert len(seen) == 4
        assert {*seen, x.abs().max().item()} == ({1.0} if clip else {3.0})


@every_sampler
def test_callback_decides_the_z_to_go_on_with(sampler):
    z, reached = normal((2, 3, 4, 4), 6), []

    def erase(step):
        reached.append((step.index, step.logsnr))
        return 0 * step.z

    config = SamplerConfig(num_steps=3, spacing="t")
    x = sampler(gaussian_denoiser(0.1, 0.5), conditioning(2), z, SCHEDULE, config, noise_like(z, 7), erase)
    last = logsnr(levels([1 / 3] * 2), SCHEDULE)
    torch.testing.assert_close(x, gaussian_denoiser(0.1, 0.5)(0 * z, last, None))
    assert [index for index, _ in reached] == [0, 1]
    torch.testing.assert_close(reached[-1][1], last)


@every_sampler
def test_samples_do_not_depend_on_how_they_are_batched(sampler):
    """Noise keyed by sample: six samples as one batch, as 4 + 2 and backwards are the same six pictures, bit for bit."""
    cond, config = conditioning(6), SamplerConfig(num_steps=8)

    def keyed(ids, step):
        return torch.cat([normal((1, 3, 4, 4), 1000 * sample + step) for sample in ids])

    def draw(ids):
        rows = torch.tensor(ids)
        return sampler(denoise_with(linear_network), cond[rows], keyed(ids, 999), SCHEDULE, config, lambda step: keyed(ids, step))

    together = draw([0, 1, 2, 3, 4, 5])
    assert torch.equal(torch.cat([draw([0, 1, 2, 3]), draw([4, 5])]), together)
    assert torch.equal(draw([5, 4, 3, 2, 1, 0]).flip(0), together)


@pytest.mark.parametrize("changes", [{"num_steps": 0}, {"interpolation": 1.1}, {"interpolation": -0.1}])
def test_sampler_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        SamplerConfig(**changes)
