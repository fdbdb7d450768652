"""The bipartite latent: a picture comes back from it, and other methods take it."""

import numpy as np
import pytest
import torch

from semantica.diffusion.schedule import alpha_sigma
from semantica.diffusion.settings import SamplerConfig
from semantica.errors import ConfigError, DataError
from semantica.generation.conditioning_images import square_of
from semantica.generation.generate import to_pixels
from tests.diffusion.oracles import gaussian_denoiser
from tests.generation.drawing import pixels

FREE = SamplerConfig(name="ddim", num_steps=50, clip=False)


def image(x):
    return to_pixels(x).permute(0, 2, 3, 1).numpy().astype(int)


def test_the_inversion_of_a_gaussian_is_exact(with_denoiser, pictures, x):
    """The picture comes back to the bit of its pixels, and z nears that of the flow as the steps get shorter."""
    mean, std = 0.1, 0.4
    model = with_denoiser(gaussian_denoiser(mean, std))
    latent = model.invert(list(x), like=pictures[0], num_iterations=20, sampler=FREE)
    assert np.array_equal(pixels(model.render(latent)), image(x))
    alpha, sigma = alpha_sigma(torch.tensor(-15.0))
    flow = alpha * mean + ((alpha * std) ** 2 + sigma**2).sqrt() * (x - mean) / std
    fine = model.invert(list(x), like=pictures[0], sampler=FREE, num_steps=400)
    errors = [(of.z - flow).abs().mean() for of in (latent, fine)]
    assert errors[1] < errors[0] / 4
    assert errors[1] < 0.01


def test_one_iteration_comes_back_less_exactly(with_denoiser, pictures, x):
    model = with_denoiser(gaussian_denoiser(0.1, 0.4))

    def error(num_iterations):
        latent = model.invert(x[0], like=pictures[0], num_iterations=num_iterations, sampler=FREE, num_steps=10)
        return np.abs(pixels(model.render(latent)) - image(x[:1])).mean()

    assert error(20) < 0.1 * error(1)


def test_a_picture_of_a_trained_network_comes_back(model, pictures):
    latent = model.invert(pictures[:2], num_steps=30)
    expected = np.stack([square_of(p, 16).permute(1, 2, 0).numpy().astype(int) for p in pictures[:2]])
    assert (
        np.abs(pixels(model.render(latent)) - expected).mean() < 0.02 * np.abs(pixels(model(pictures[0])) - expected[0]).mean() + 1
    )
    assert latent.guidance == 0
    assert latent.sampler.name == "ddim"
    assert latent.z.shape == (2, 3, 16, 16)


def test_a_latent_remembers_its_settings_and_render_may_change_the_meaning(model, pictures):
    latent = model.invert(pictures[0], guidance=0.5, num_steps=12)
    again = model.render(latent)
    other = model.render(latent, like=pictures[1])
    assert (latent.guidance, latent.sampler.num_steps) == (0.5, 12)
    assert np.array_equal(pixels(again), pixels(model.render(latent, guidance=0.5, num_steps=12)))
    assert not np.array_equal(pixels(again), pixels(other))
    assert not np.array_equal(pixels(again), pixels(model.render(latent, guidance=2.0)))


def test_one_picture_of_several_is_inverted_as_alone(model, pictures):
    two, one = model.invert(pictures[:2], num_steps=8), model.invert(pictures[1], num_steps=8)
    assert len(two) == 2
    assert two[1].names == one.names
    torch.testing.assert_close(two[1].z, one.z, rtol=1e-3, atol=1e-3)
    with pytest.raises(IndexError):
        two[2]


def test_other_methods_take_a_latent_for_noise_and_for_what_the_encoder_says(model, pictures, x):
    latent = model.invert(pictures[0], num_steps=6)
    asked = {"noise": latent, "sampler": "ddim", "num_steps": 6, "guidance": 0}
    expected = pixels(model.render(latent))
    assert np.array_equal(pixels(model.edit(x[0], like=latent, strength=1, **asked)), expected)
    assert np.array_equal(pixels(model.edit(x[0], like=pictures[0], strength=1, **asked)), expected)
    assert np.array_equal(pixels(model.inpaint(x[0], torch.ones(16, 16), like=latent, **asked)), expected)
    assert np.array_equal(pixels(model.refine(x[0], like=latent, until=1, **asked)), expected)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sampler": "ddpm"}, ConfigError, "sampler: only ddim can be inverted, got ddpm"),
        ({"num_iterations": 0}, ConfigError, "num_iterations must be at least 1, got 0"),
        ({"callback": lambda step: step.z}, ConfigError, "callback: invert takes no callback; leave it out"),
        ({"num_samples": 2}, ConfigError, "num_samples: invert takes no num_samples; leave it out"),
        ({"like": None}, DataError, "like: a picture that is a tensor cannot be encoded; give its conditioning image"),
    ],
)
def test_bad_input_is_refused_in_one_line(model, pictures, x, changes, error, message):
    with pytest.raises(error) as caught:
        model.invert(x[0], **{"like": pictures[0], **changes})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
