"""The sampler against closed forms: posteriors of Gaussians, optimal denoisers of known distributions; guidance as identities."""

import pytest
import torch

from semantica.conditioning import Conditioning
from semantica.diffusion.guidance import guided
from semantica.diffusion.process import denoise_with, eps_from_x, v_from_x
from semantica.diffusion.samplers import SamplerConfig, ddpm, ddpm_posterior, ddpm_step
from semantica.diffusion.schedule import ScheduleConfig, alpha_sigma, logsnr
from semantica.errors import ConfigError

SCHEDULE = ScheduleConfig(resolution_px=64)


def normal(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conditioning(num, seed=0):
    return Conditioning.of(normal((num, 2, 4), seed), normal((num, 3), seed + 1))


def noise_like(z, seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda _: torch.randn(z.shape, generator=generator, dtype=z.dtype)


def levels(values):
    return torch.tensor(values, dtype=torch.float64)


def gaussian_denoiser(mean, std):
    """E[x | z] for x ~ N(mean, std²), every pixel by itself."""

    def denoise(z, logsnr, cond):
        alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (z - alpha * mean)

    return denoise


def two_point_denoiser(probability):
    """E[x | z] for x = 1 with the probability, else -1."""
    prior = torch.logit(torch.tensor(probability, dtype=torch.float64)) / 2

    def denoise(z, logsnr, cond):
        alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
        return torch.tanh(alpha * z / sigma**2 + prior)

    return denoise


def linear_network(z, logsnr, cond):
    """A network whose v_hat depends on everything it is given, row by row."""
    strength = torch.where(cond.is_null, 0.3, cond.pooled.mean(dim=1))
    return (z * torch.sigmoid(logsnr)[:, None, None, None] + strength[:, None, None, None]).sin()


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


# Sampler


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


def test_two_point_mixture_is_recovered():
    """Every pixel ends at -1 or 1, in the right proportion within 4 standard errors (binomial)."""
    z = normal((50, 3, 16, 16), 4)
    x = ddpm(two_point_denoiser(0.7), conditioning(50), z, SCHEDULE, SamplerConfig(num_steps=200), noise_like(z, 5))
    assert ((x.abs() - 1).abs() < 1e-3).double().mean() > 0.999
    assert abs((x > 0).double().mean().item() - 0.7) < 4 * (0.7 * 0.3 / x.numel()) ** 0.5


def test_one_step_returns_the_denoised_noise_and_asks_for_no_noise():
    z = normal((2, 3, 4, 4), 6)

    def no_noise(index):
        raise AssertionError(index)

    x = ddpm(gaussian_denoiser(0.1, 0.5), conditioning(2), z, SCHEDULE, SamplerConfig(num_steps=1), no_noise)
    torch.testing.assert_close(x, gaussian_denoiser(0.1, 0.5)(z, levels([-15.0, -15.0]), None))


def test_x_hat_is_clipped_at_every_step_only_when_asked():
    z, seen = normal((2, 3, 4, 4), 6), []

    def watch(step):
        seen.append(step.x_hat.abs().max().item())
        return step.z

    for clip in (True, False):
        seen.clear()
        config = SamplerConfig(num_steps=5, clip=clip)
        x = ddpm(lambda z, *_: 3 + 0 * z, conditioning(2), z, SCHEDULE, config, noise_like(z, 7), watch)
        assert len(seen) == 4
        assert {*seen, x.abs().max().item()} == ({1.0} if clip else {3.0})


def test_callback_decides_the_z_to_go_on_with():
    z = normal((2, 3, 4, 4), 6)
    config = SamplerConfig(num_steps=3)
    x = ddpm(gaussian_denoiser(0.1, 0.5), conditioning(2), z, SCHEDULE, config, noise_like(z, 7), lambda step: 0 * step.z)
    last = logsnr(levels([1 / 3] * 2), SCHEDULE)
    torch.testing.assert_close(x, gaussian_denoiser(0.1, 0.5)(0 * z, last, None))


def test_samples_do_not_depend_on_how_they_are_batched():
    """Noise keyed by sample: six samples as one batch, as 4 + 2 and backwards are the same six pictures, bit for bit."""
    cond, config = conditioning(6), SamplerConfig(num_steps=8)

    def keyed(ids, step):
        return torch.cat([normal((1, 3, 4, 4), 1000 * sample + step) for sample in ids])

    def draw(ids):
        rows = torch.tensor(ids)
        return ddpm(denoise_with(linear_network), cond[rows], keyed(ids, 999), SCHEDULE, config, lambda step: keyed(ids, step))

    together = draw([0, 1, 2, 3, 4, 5])
    assert torch.equal(torch.cat([draw([0, 1, 2, 3]), draw([4, 5])]), together)
    assert torch.equal(draw([5, 4, 3, 2, 1, 0]).flip(0), together)


@pytest.mark.parametrize("changes", [{"num_steps": 0}, {"interpolation": 1.1}, {"interpolation": -0.1}])
def test_sampler_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        SamplerConfig(**changes)


# Guidance


class Counting:
    def __init__(self):
        self.batches = []

    def __call__(self, z, logsnr, cond):
        self.batches.append(len(z))
        return denoise_with(linear_network)(z, logsnr, cond)


def test_no_guidance_is_the_conditional_model_bit_for_bit_in_one_call():
    z, level, cond, counting = normal((3, 3, 4, 4), 8), levels([-2.0, 0.0, 2.0]), conditioning(3), Counting()
    assert torch.equal(guided(counting, 0.0)(z, level, cond), denoise_with(linear_network)(z, level, cond))
    assert counting.batches == [3]


def test_guidance_combines_both_branches_from_one_call():
    z, level, cond, counting = normal((3, 3, 4, 4), 8), levels([-2.0, 0.0, 2.0]), conditioning(3), Counting()
    out = guided(counting, 0.5)(z, level, cond)
    assert counting.batches == [6]
    network = denoise_with(linear_network)
    torch.testing.assert_close(out, 1.5 * network(z, level, cond) - 0.5 * network(z, level, cond.null()))


def test_guidance_agrees_in_x_v_and_eps():
    """Before clipping it does not matter which prediction is combined."""
    z, level, cond = normal((3, 3, 4, 4), 8), levels([-2.0, 0.0, 2.0]), conditioning(3)
    network, w = denoise_with(linear_network), 1.5
    x = guided(network, w)(z, level, cond)
    for convert in (v_from_x, eps_from_x):
        conditional, unconditional = (convert(z, network(z, level, branch), level) for branch in (cond, cond.null()))
        torch.testing.assert_close(convert(z, x, level), (1 + w) * conditional - w * unconditional)


def test_guidance_of_null_rows_is_the_unconditional_model():
    z, level, cond = normal((3, 3, 4, 4), 8), levels([-2.0, 0.0, 2.0]), conditioning(3).null()
    network = denoise_with(linear_network)
    torch.testing.assert_close(guided(network, 1.0)(z, level, cond), network(z, level, cond))
