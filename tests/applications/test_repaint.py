"""Inpainting by replacement, and what resampling adds, on a Gaussian whose pixels agree with each other."""

import numpy as np
import pytest
import torch
from PIL import Image

from semantica.applications.drawing import Drawing
from semantica.applications.repaint import noised_again, part_of_run
from semantica.diffusion.schedule import alpha_sigma
from semantica.errors import ConfigError, DataError
from semantica.generation.conditioning_images import square_of
from semantica.generation.generate import to_pixels
from tests.diffusion.oracles import gaussian_denoiser
from tests.generation.drawing import pixels

SAMPLERS = ["ddpm", "ddim", "dpm_solver"]
FEW = {"num_steps": 6}
ALL, RIGHT = torch.ones(16, 16), torch.zeros(16, 16)
RIGHT[:, 8:] = 1


def image(x):
    return to_pixels(x).permute(0, 2, 3, 1).numpy().astype(int)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_hole_everywhere_is_plain_sampling_bit_for_bit(model, pictures, x, sampler):
    asked = {"sampler": sampler, "num_samples": 2, "guidance": 1.0, **FEW}
    drawn = model.inpaint(x[0], ALL, like=pictures[0], **asked)
    assert np.array_equal(pixels(drawn), pixels(model(pictures[0], **asked)))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("resample", [1, 3])
def test_the_known_part_comes_back_exactly_and_the_hole_is_drawn(model, pictures, x, sampler, resample):
    drawn = pixels(model.inpaint(x[0], RIGHT, like=pictures[0], resample=resample, jump=2, sampler=sampler, **FEW))
    assert np.array_equal(drawn[:, :, :8], image(x[:1])[:, :, :8])
    assert not np.array_equal(drawn[:, :, 8:], image(x[:1])[:, :, 8:])


@pytest.mark.parametrize(("resample", "jump", "calls"), [(1, 10, 7), (1, 2, 7), (2, 2, 14), (3, 3, 21), (2, 100, 14)])
def test_every_step_costs_one_call_per_time_that_it_is_drawn(with_denoiser, x, resample, jump, calls):
    model = with_denoiser(gaussian_denoiser(0.0, 0.5))
    seen = []

    def watch(step):
        seen.append(step.index)
        return step.z

    model.inpaint(x[0], RIGHT, resample=resample, jump=jump, num_steps=7, callback=watch)
    assert len(model.model.calls) == calls
    assert sorted(set(seen)) == list(range(6))
    assert len(seen) == 6 * resample


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_run_in_parts_is_the_run(model, pictures, sampler, length):
    """z is handed from part to part. (DPM-Solver++ begins each part of a run without the step before it.)"""
    cond, names = model.conditioning([[pictures[0]]])
    drawing = Drawing.of(model, cond, names, {"sampler": sampler, "num_steps": 8})

    def method(chunk):
        noise = chunk.noise()
        z = drawing.first(chunk, noise)
        for first in range(0, 8, length):
            z = part_of_run(chunk, z, noise, drawing.levels(), range(first, min(first + length, 8)), None)
        return z

    ((drawn,),) = drawing.pictures(method)
    assert np.array_equal(pixels([drawn]), pixels(model(pictures[0], num_samples=1, sampler=sampler, num_steps=8)))


def test_the_known_part_is_noised_to_the_level_that_z_has_reached(model, x):
    seen = []

    def watch(step):
        alpha, sigma = alpha_sigma(step.logsnr[:, None, None, None])
        seen.append(((step.z - alpha * x[:1]) / sigma)[..., :8])
        return step.z

    model.inpaint(x[0], RIGHT, callback=watch, resample=2, jump=3, sampler="ddim", num_steps=12)
    eps = torch.cat(seen).flatten(1)
    assert len(eps) == 22
    assert (eps.mean(1).abs() < 0.21).all()  # four standard errors of 384 numbers
    assert ((eps.std(1) - 1).abs() < 0.15).all()


def test_noising_again_gives_the_forward_process():
    """z_t of z_s = alpha_s x + sigma_s e is alpha_t x plus noise whose variances add up to sigma_t²."""
    for t, s in [(-3.0, 1.0), (-14.0, -13.5), (2.0, None)]:
        to, since = torch.tensor(t).double(), None if s is None else torch.tensor(s).double()
        alpha_s, sigma_s = (torch.tensor(1.0), torch.tensor(0.0)) if since is None else alpha_sigma(since)
        unit, nothing = torch.ones(1, 1, 1, 1).double(), torch.zeros(1, 1, 1, 1).double()
        of_x, of_e, of_eps = noised_again(alpha_s * unit, nothing, to, since), noised_again(sigma_s * unit, nothing, to, since), 0
        of_eps = noised_again(nothing, unit, to, since)
        alpha, sigma = alpha_sigma(to)
        torch.testing.assert_close(of_x.squeeze(), alpha)
        torch.testing.assert_close((of_e**2 + of_eps**2).squeeze(), sigma**2)


def test_resampling_makes_the_hole_agree_with_its_surroundings(with_denoiser):
    """All pixels of a picture are c + noise of 0.05, c ~ N(0, 0.5²): the hole must have the c of the known half."""
    common, own, num = 0.5**2, 0.05**2, 3 * 16 * 16

    def denoise(z, logsnr):
        alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
        mean = z.mean((1, 2, 3), keepdim=True)
        of_mean = alpha * (common + own / num) / (alpha**2 * (common + own / num) + sigma**2 / num) * mean
        return of_mean + alpha * own / (alpha**2 * own + sigma**2) * (z - mean)

    def error(resample):
        drawn = model.inpaint(torch.full((3, 16, 16), 0.8), RIGHT, resample=resample, jump=5, num_samples=8, num_steps=30)
        return np.abs(pixels(drawn)[:, :, 8:].mean((1, 2, 3)) / 127.5 - 1 - 0.8).mean()

    model = with_denoiser(denoise)
    assert error(6) < 0.75 * error(1)


def test_a_hole_is_any_pixel_that_the_mask_touches(model, pictures):
    mask = Image.new("L", (40, 40))
    mask.putpixel((21, 0), 255)
    drawn = pixels(model.inpaint(pictures[0], mask, **FEW))[0]
    differs = (drawn != square_of(pictures[0], 16).permute(1, 2, 0).numpy()).any(-1)
    assert differs[0, 8]
    assert differs.sum() == 1


def test_pictures_have_masks_of_their_own_and_are_drawn_the_same_alone_and_among_others(model, x):
    two = model.inpaint(list(x), [RIGHT, ALL], resample=2, jump=3, num_samples=2, **FEW)
    for index, mask in enumerate([RIGHT, ALL]):
        alone = model.inpaint(x[index], mask, resample=2, jump=3, num_samples=2, **FEW)
        assert np.abs(pixels(two[index]) - pixels(alone)).max() <= 1


@pytest.mark.parametrize(
    ("mask", "changes", "error", "message"),
    [
        (torch.zeros(16, 16), {}, DataError, "mask: there is no hole to draw; make the pixels that shall be drawn white"),
        (torch.ones(16, 15), {}, DataError, "mask: the mask is 15x16, but its picture is 16x16; make both of one size"),
        (ALL, {"resample": 0}, ConfigError, "resample must be at least 1, got 0"),
        (ALL, {"jump": 0}, ConfigError, "jump must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(model, x, mask, changes, error, message):
    with pytest.raises(error) as caught:
        model.inpaint(x[0], mask, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
