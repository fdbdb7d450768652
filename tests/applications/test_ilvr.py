"""Iterative latent variable refinement: the identities at both ends, and what the reference decides in between."""

import numpy as np
import pytest
import torch
from PIL import Image

from semantica.applications.ilvr import low_pass
from semantica.diffusion.schedule import alpha_sigma
from semantica.errors import ConfigError, DataError
from semantica.generation.generate import SampleNoise
from tests.generation.drawing import pixels

SAMPLERS = ["ddpm", "ddim", "dpm_solver"]
FEW = {"num_steps": 8}


def x_of(drawn):
    return torch.from_numpy(pixels(drawn)).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_factor_1_without_an_end_returns_the_reference(model, pictures, x, sampler):
    drawn = model.refine(x[0], like=pictures[0], factor=1, sampler=sampler, guidance=1.0, **FEW)
    assert (x_of(drawn) - x[:1]).abs().max() <= 1 / 255 + 1e-6  # half a level of uint8


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_reference_that_ends_at_once_is_plain_sampling_bit_for_bit(model, pictures, x, sampler):
    asked = {"sampler": sampler, "num_samples": 2, **FEW}
    drawn = model.refine(x[0], like=pictures[0], factor=4, until=1, **asked)
    assert np.array_equal(pixels(drawn), pixels(model(pictures[0], **asked)))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_low_frequencies_are_those_of_the_reference_and_the_less_the_later(model, pictures, x, sampler):
    def distance(until):
        drawn = model.refine(x[0], like=pictures[0], factor=4, until=until, sampler=sampler, num_samples=4, num_steps=16)
        return (low_pass(x_of(drawn), 4) - low_pass(x[:1], 4)).square().mean()

    whole, half, none = distance(0.0), distance(0.5), distance(1.0)
    assert whole < 0.1 * none
    assert whole < half < none


def test_a_larger_factor_leaves_more_to_the_model(model, pictures, x):
    def distance(factor):
        drawn = model.refine(x[0], like=pictures[0], factor=factor, num_samples=4, **FEW)
        return (x_of(drawn) - x[:1]).square().mean()

    assert distance(2) < distance(4) < distance(16)


def test_the_reference_is_noised_to_the_level_that_z_has_reached_with_new_noise_at_every_step(model, x):
    """With factor 1 z is the noised reference itself, as a callback sees."""
    seen = []

    def watch(step):
        alpha, sigma = alpha_sigma(step.logsnr[:, None, None, None])
        own = [] if seen else [SampleNoise(0, step.names, step.z.shape[1:]).draw()]  # z at t = 1
        seen.extend([*own, (step.z - alpha * x[:1]) / sigma])
        return step.z

    model.refine(x[0], factor=1, callback=watch, sampler="ddim", num_steps=12)
    eps = torch.cat(seen).flatten(1)
    assert len(eps) == 12
    assert (eps.mean(1).abs() < 0.15).all()  # four standard errors of 768 numbers
    assert ((eps.std(1) - 1).abs() < 0.1).all()
    assert (torch.corrcoef(eps) - torch.eye(12)).abs().max() < 0.15


def test_low_pass_is_linear_leaves_constants_and_takes_any_factor():
    a, b = torch.randn(2, 2, 3, 16, 16).double()
    for factor in (1, 2, 3, 5, 16):
        assert torch.allclose(low_pass(2 * a + b, factor), 2 * low_pass(a, factor) + low_pass(b, factor))
        assert torch.allclose(low_pass(torch.full_like(a, 0.3), factor), torch.full_like(a, 0.3))
    assert torch.equal(low_pass(a, 1), a)
    assert torch.allclose(low_pass(a, 16), a.mean((2, 3), keepdim=True).expand_as(a))


def test_a_reference_is_followed_the_same_alone_and_among_others(model, pictures):
    three = model.refine(pictures[:3], factor=4, num_samples=2, **FEW)
    assert np.abs(pixels(three[2]) - pixels(model.refine(pictures[2], factor=4, num_samples=2, **FEW))).max() <= 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"factor": 0}, ConfigError, "factor must be 1 to the resolution of the model, 16, got 0"),
        ({"factor": 17}, ConfigError, "factor must be 1 to the resolution of the model, 16, got 17"),
        ({"reference": Image.new("RGB", (30, 7)), "factor": 8}, DataError, "reference: 30x7 px is smaller than the factor 8"),
        ({"until": -0.1}, ConfigError, "until must be a noise level in [0, 1], got -0.1"),
        ({"reference": torch.zeros(1, 16, 16)}, DataError, "reference: expected x of shape (3, 16, 16)"),
    ],
)
def test_bad_input_is_refused_in_one_line(model, x, changes, error, message):
    asked = {"reference": x[0], **changes}
    with pytest.raises(error) as caught:
        model.refine(asked.pop("reference"), **asked)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
