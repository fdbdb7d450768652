"""Every sampler against closed forms: posteriors of Gaussians, optimal denoisers of known distributions; what they share."""

import pytest
import torch

from semantica.config import from_args
from semantica.diffusion.samplers import (
    ddim,
    ddim_invert,
    ddpm,
    ddpm_posterior,
    ddpm_step,
    dpm_solver,
    levels_from,
    levels_of,
    sample,
    sampler,
    step_levels,
    walk,
)
from semantica.diffusion.schedule import alpha_sigma, logsnr
from semantica.diffusion.settings import SAMPLER_NAMES, SAMPLERS, SamplerConfig, ScheduleConfig
from semantica.errors import ConfigError
from tests.diffusion.oracles import (
    BIND,
    SCHEDULE,
    conditioning,
    gaussian_denoiser,
    levels,
    no_noise,
    noise_like,
    normal,
    two_point_denoiser,
)

every_sampler = pytest.mark.parametrize("name", SAMPLERS)

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
            return ddpm_posterior(z, denoise(z, t), t, s)

        offset, small, large = step(0 * one)
        gain = step(one)[0] - offset
        centre = gain * centre + offset
        variance = gain**2 * variance + small**config.interpolation * large ** (1 - config.interpolation)
    offset = denoise(0 * one, steps[-2:-1])
    gain = denoise(one, steps[-2:-1]) - offset
    return (gain * centre + offset)[0, 0].item(), (gain**2 * variance)[0, 0].item()


def test_optimal_denoiser_of_a_gaussian_recovers_it():
    """Sampled moments lie within 4 standard errors of the exact ones for 100 steps, and those tend to the Gaussian's own."""
    mean, std = 0.3, 0.5
    config = SamplerConfig(num_steps=100, clip=False)
    z = normal((100, 3, 16, 16), 2)
    x = sample(gaussian_denoiser(mean, std), z, SCHEDULE, noise_like(z, 3), config)
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
def test_two_point_mixture_is_recovered(name):
    """Every pixel ends at -1 or 1, in the right proportion within 4 standard errors (binomial)."""
    z = normal((50, 3, 16, 16), 4)
    x = sample(two_point_denoiser(0.7), z, SCHEDULE, noise_like(z, 5), SamplerConfig(name=name, num_steps=200))
    assert ((x.abs() - 1).abs() < 1e-3).double().mean() > 0.999
    assert abs((x > 0).double().mean().item() - 0.7) < 4 * (0.7 * 0.3 / x.numel()) ** 0.5


# What all have in common


@every_sampler
def test_one_step_returns_the_denoised_noise_and_asks_for_no_noise(name):
    z = normal((2, 3, 4, 4), 6)
    x = sample(gaussian_denoiser(0.1, 0.5), z, SCHEDULE, no_noise, SamplerConfig(name=name, num_steps=1))
    torch.testing.assert_close(x, gaussian_denoiser(0.1, 0.5)(z, levels([-15.0, -15.0])))


@every_sampler
@pytest.mark.parametrize("spacing", ["t", "logsnr"])
def test_the_denoiser_sees_the_levels_of_the_spacing(name, spacing):
    """Equal steps in t or in logsnr, from t = 1, without t = 0; the paper's for ddpm when none is named, logsnr for the others."""
    t = torch.linspace(1, 0, 6, dtype=torch.float64)
    expected = {"t": logsnr(t, SCHEDULE), "logsnr": 15 - 30 * t}[spacing][:-1]
    for asked in {spacing, None} if (name == "ddpm") == (spacing == "t") else {spacing}:
        seen = []

        def watch(z, level, seen=seen):
            seen.append(level)
            return 0 * z

        z = normal((2, 3, 4, 4), 6)
        sample(watch, z, SCHEDULE, noise_like(z, 7), SamplerConfig(name=name, num_steps=5, spacing=asked))
        torch.testing.assert_close(torch.stack(seen), expected[:, None].expand(5, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spacing", ["t", "logsnr"])
def test_levels_end_where_the_schedule_does_and_rise(spacing):
    found = step_levels(ScheduleConfig(resolution_px=256, logsnr_min=-10.0, logsnr_max=12.0), 20, spacing)
    torch.testing.assert_close(found[[0, -1]], levels([-10.0, 12.0]))
    assert (found.diff() > 0).all()


@every_sampler
def test_x_hat_is_clipped_at_every_step_only_when_asked(name):
    z, seen = normal((2, 3, 4, 4), 6), []

    def watch(step):
        seen.append(step.x_hat.abs().max().item())
        return step.z

    for clip in (True, False):
        seen.clear()
        config = SamplerConfig(name=name, num_steps=5, clip=clip)
        x = sample(lambda z, _: 3 + 0 * z, z, SCHEDULE, noise_like(z, 7), config, watch)
        assert len(seen) == 4
        assert {*seen, x.abs().max().item()} == ({1.0} if clip else {3.0})


@every_sampler
def test_callback_decides_the_z_to_go_on_with(name):
    z, reached = normal((2, 3, 4, 4), 6), []

    def erase(step):
        reached.append((step.index, step.logsnr))
        return 0 * step.z

    config = SamplerConfig(name=name, num_steps=3, spacing="t")
    x = sample(gaussian_denoiser(0.1, 0.5), z, SCHEDULE, noise_like(z, 7), config, erase)
    last = logsnr(levels([1 / 3] * 2), SCHEDULE)
    torch.testing.assert_close(x, gaussian_denoiser(0.1, 0.5)(0 * z, last))
    assert [index for index, _ in reached] == [0, 1]
    torch.testing.assert_close(reached[-1][1], last)


@pytest.mark.parametrize(("returned", "got"), [(None, "NoneType"), (torch.zeros(1, 3, 4, 4), r"\(1, 3, 4, 4\)")])
def test_a_callback_that_returns_no_z_is_told_what_to_return(returned, got):
    z = normal((2, 3, 4, 4), 6)
    with pytest.raises(ConfigError, match=rf"a z of shape \(2, 3, 4, 4\), got {got}; return step.z to change nothing"):
        ddim(gaussian_denoiser(0.1, 0.5), z, step_levels(SCHEDULE, 3, "t"), callback=lambda step: returned)


@every_sampler
def test_samples_do_not_depend_on_how_they_are_batched(name):
    """Noise keyed by sample: six samples as one batch, as 4 + 2 and backwards are the same six pictures, bit for bit."""
    cond, config = conditioning(6), SamplerConfig(name=name, num_steps=8)

    def keyed(ids, step):
        return torch.cat([normal((1, 3, 4, 4), 1000 * number + step) for number in ids])

    def draw(ids):
        return sample(BIND(cond[torch.tensor(ids)]), keyed(ids, 999), SCHEDULE, lambda step: keyed(ids, step), config)

    together = draw([0, 1, 2, 3, 4, 5])
    assert torch.equal(torch.cat([draw([0, 1, 2, 3]), draw([4, 5])]), together)
    assert torch.equal(draw([5, 4, 3, 2, 1, 0]).flip(0), together)


def steered(denoise, gradient, scale):
    """x_hat moved along the gradient of a score of x_hat with respect to z: guidance by a network that is not the denoiser."""

    def denoise_steered(z, level):
        alpha, sigma = alpha_sigma(level[:, None, None, None])
        with torch.enable_grad():
            x_hat = denoise(z.requires_grad_(), level)
            (slope,) = torch.autograd.grad(gradient(x_hat), z)
        return (x_hat + sigma**2 / alpha * scale * slope).detach()

    return denoise_steered


def test_a_wrapper_that_needs_gradients_steers_a_run_made_without_them():
    """The score is linear in x_hat, so that a Gaussian's samples keep their std and their mean moves by scale · std²."""
    mean, std, scale = 0.3, 0.5, 0.8
    denoise = steered(gaussian_denoiser(mean, std), lambda x_hat: x_hat.sum(), scale)
    x = ddim(denoise, normal((50, 3, 8, 8), 2), step_levels(SCHEDULE, 400, "logsnr"), clip=False)
    assert not x.requires_grad
    assert x.mean().item() == pytest.approx(mean + scale * std**2, abs=0.02)
    assert x.std().item() == pytest.approx(std, rel=0.03)


# Vectors


@every_sampler
def test_vectors_are_diffused_as_pictures_of_one_pixel(name):
    """(B, D, 1, 1) with a mean and a std of its own for each of the D channels: both are recovered by every sampler."""
    mean, std = normal((7, 1, 1), 1) / 2, normal((7, 1, 1), 2).abs() / 2 + 0.1
    schedule = ScheduleConfig(resolution_px=1, noise_resolution_px=1)

    def denoise(z, level):
        alpha, sigma = alpha_sigma(level[:, None, None, None])
        return mean + alpha * std**2 / ((alpha * std) ** 2 + sigma**2) * (z - alpha * mean)

    z = normal((2000, 7, 1, 1), 3)
    x = sample(denoise, z, schedule, noise_like(z, 4), SamplerConfig(name=name, num_steps=200, clip=False))
    assert x.shape == (2000, 7, 1, 1)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=4 * std.max().item() / 2000**0.5 + 0.01)
    torch.testing.assert_close(x.std(0), std, rtol=0.08, atol=0)


def test_a_run_of_vectors_is_inverted():
    schedule = ScheduleConfig(resolution_px=1, noise_resolution_px=1)
    x, steps = 0.5 * normal((6, 5, 1, 1), 0), step_levels(schedule, 40, "logsnr")
    denoise = BIND(conditioning(6))
    z = ddim_invert(denoise, x, steps, clip=False)
    torch.testing.assert_close(ddim(denoise, z, steps, clip=False), x, rtol=0, atol=1e-4)


# The registry


def test_the_paper_sampler_is_the_default_and_each_name_is_its_function():
    assert {name: entry.run for name, entry in SAMPLERS.items()} == {"ddpm": ddpm, "ddim": ddim, "dpm_solver": dpm_solver}
    assert SamplerConfig().name == "ddpm"


def test_a_sampler_is_added_by_one_function_beside_its_code(monkeypatch):
    """It draws by its own spacing, with the settings and the noise that it names, and a command line takes it."""
    monkeypatch.setattr(SAMPLERS, "_parts", {name: SAMPLERS[name] for name in SAMPLERS})

    @sampler("noisy", spacing="t")
    def noisy(denoise, z, levels, noise, *, interpolation, callback=None):
        return walk(lambda i, z, x_hat, t, s: x_hat + interpolation * noise(i), denoise, z, levels, clip=False, callback=callback)

    z, config = normal((2, 3, 4, 4), 6), SamplerConfig(name="noisy", num_steps=2, interpolation=0.5)
    assert torch.equal(levels_of(config, SCHEDULE), step_levels(SCHEDULE, 2, "t"))
    denoise, eps = gaussian_denoiser(0.1, 0.5), normal((2, 3, 4, 4), 7)
    first, middle = (level.expand(2) for level in step_levels(SCHEDULE, 2, "t")[:2])
    expected = denoise(denoise(z, first) + 0.5 * eps, middle)
    assert torch.equal(sample(denoise, z, SCHEDULE, lambda index: eps, config), expected)
    assert from_args(SamplerConfig, ["--name", "noisy"], prog="p", description="d").name == "noisy"


def test_the_help_of_a_command_names_every_sampler_of_the_project(capsys):
    with pytest.raises(SystemExit):
        from_args(SamplerConfig, ["--help"], prog="p", description="d")
    assert f"--name {{{','.join(SAMPLERS)}}}" in capsys.readouterr().out
    assert tuple(SAMPLERS) == SAMPLER_NAMES


@pytest.mark.parametrize("wrong", ["another", "DDIM", ""])
def test_an_unknown_sampler_is_refused_with_the_known_names(wrong):
    with pytest.raises(ConfigError, match=f"name must be one of ddpm, ddim, dpm_solver, got '{wrong}'"):
        SamplerConfig(name=wrong)


def test_a_sampler_that_asks_for_what_nobody_has_is_refused_when_it_is_registered():
    with pytest.raises(AssertionError, match="odd: unknown keywords"):
        sampler("odd")(lambda denoise, z, levels, *, temperature: z)
    assert "odd" not in SAMPLERS


@pytest.mark.parametrize("changes", [{"num_steps": 0}, {"interpolation": 1.1}, {"interpolation": -0.1}])
def test_sampler_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        SamplerConfig(**changes)


def test_a_run_from_a_level_begins_there_and_visits_the_later_levels_of_the_whole_run():
    whole = levels([-4.0, -2.0, 0.0, 3.0])
    assert levels_from(whole, -2.0).tolist() == [-2.0, 0.0, 3.0]
    assert levels_from(whole, -1.5).tolist() == [-1.5, 0.0, 3.0]
    assert levels_from(whole, -0.5).tolist() == [-0.5, 3.0]  # a step of 0.5 where the run has one of 2
    assert levels_from(whole, 2.9).tolist() == [2.9, 3.0]
    assert levels_from(whole, -4.0) is whole
    assert levels_from(whole, -9.0) is whole


@every_sampler
def test_a_run_over_given_levels_is_that_of_the_sampler_itself(name):
    z, config = normal((2, 3, 2, 2), 0), SamplerConfig(name=name, num_steps=9)
    later = levels_of(config, SCHEDULE)[4:]
    drawn = sample(gaussian_denoiser(0.2, 0.4), z, SCHEDULE, noise_like(z, 1), config, levels=later)
    noise = {"noise": noise_like(z, 1)} if name == "ddpm" else {}
    function = {"ddpm": ddpm, "ddim": ddim, "dpm_solver": dpm_solver}[name]
    assert torch.equal(drawn, function(gaussian_denoiser(0.2, 0.4), z, later, **noise))
