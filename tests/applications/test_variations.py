"""Variations and interpolations: the arc between two vectors, and the ends at which a known picture must stand."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from semantica.applications.variations import slerp
from semantica.errors import ConfigError, DataError
from tests.generation.drawing import pixels

FEW = {"num_steps": 6}


def angle(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1).acos()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_slerp_turns_whole_vectors_by_a_share_of_the_angle_of_their_dot_product(share):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 7, 24, generator=generator).double() for _ in range(2))
    a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    between = slerp(a, b, share)
    torch.testing.assert_close(angle(a, between), share * angle(a, b))
    torch.testing.assert_close(between.norm(dim=-1), torch.ones(5, 7).double())


def test_a_slerp_has_exact_ends_and_takes_vectors_on_a_line():
    a, b = torch.tensor([[1.0, 0.0], [0.5, 0.5], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [0.5, 0.5], [-1.0, -1.0]])
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    half = math.sqrt(0.5)
    torch.testing.assert_close(slerp(a, b, 0.5), torch.tensor([[half, 2 * half], [0.5, 0.5], [0.0, 0.0]]))


def test_variations_of_a_picture_are_what_the_model_draws_of_it(model, pictures):
    assert np.array_equal(pixels(model.vary(pictures[0], **FEW)), pixels(model(pictures[0], num_samples=4, **FEW)))


def test_a_spread_goes_from_the_picture_of_a_latent_to_new_noise(model, pictures):
    latent = model.invert(pictures[0], num_steps=12)
    own = pixels(model.render(latent))

    def varied(spread):
        return pixels(model.vary(latent, spread=spread, num_samples=8))

    assert np.abs(varied(0.0) - own).max() <= 1
    new = pixels(model(pictures[0], num_samples=8, guidance=0, sampler="ddim", num_steps=12))
    assert np.abs(varied(1.0) - new).max() <= 1
    far = [np.abs(varied(spread) - own).mean() for spread in (0.1, 0.4, 1.0)]
    assert far[0] < far[1] < far[2]


def test_an_interpolation_begins_with_the_first_sample_of_a_and_ends_with_the_meaning_of_b(model, pictures):
    a, b = pictures[:2]
    fixed, slerped = (model.interpolate(a, b, 5, noise=noise, sampler="ddim", **FEW) for noise in ("fixed", "slerped"))
    (first,), (last,) = model([a, b], num_samples=1, sampler="ddim", **FEW)
    assert len(fixed) == len(slerped) == 5
    for drawn in (fixed, slerped):
        assert np.abs(pixels(drawn[:1]) - pixels([first])).max() <= 1
    assert np.abs(pixels(slerped[-1:]) - pixels([last])).max() <= 1
    assert np.abs(pixels(fixed[-1:]) - pixels([last])).max() > 1
    steps = [np.abs(pixels([left]) - pixels([right])).mean() for left, right in pairwise(slerped)]
    assert max(steps) < 0.6 * np.abs(pixels([first]) - pixels([last])).mean()


def test_what_lies_between_does_not_depend_on_how_many_pictures_are_drawn(model, pictures):
    three, five = (model.interpolate(*pictures[:2], num, **FEW) for num in (3, 5))
    assert np.abs(pixels(three[1:2]) - pixels(five[2:3])).max() <= 1


def test_two_latents_begin_and_end_with_their_pictures(model, pictures):
    a, b = (model.invert(picture, num_steps=12) for picture in pictures[:2])
    drawn = model.interpolate(a, b, 3, noise="slerped")
    assert np.abs(pixels(drawn[:1]) - pixels(model.render(a))).max() <= 1
    assert np.abs(pixels(drawn[-1:]) - pixels(model.render(b))).max() <= 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, a, b: m.interpolate(a, b, 1), ConfigError, "num must be at least 2, got 1"),
        (lambda m, a, b: m.interpolate(a, b, num_samples=2), ConfigError, "num_samples: interpolate takes no num_samples"),
        (
            lambda m, a, b: m.interpolate(m.invert([a, b], num_steps=1), b),
            DataError,
            "the latent of one picture, got 2; take latent[0]",
        ),
        (lambda m, a, b: m.vary(a, spread=0.5), ConfigError, "spread must be 1 for a picture without a latent; give model.invert"),
        (lambda m, a, b: m.vary(m.invert(a, num_steps=1), spread=1.5), ConfigError, "spread must be in [0, 1], got 1.5"),
        (lambda m, a, b: m.vary(m.invert([a, b], num_steps=1)), DataError, "the latent of one picture, got 2; take latent[0]"),
    ],
)
def test_bad_input_is_refused_in_one_line(model, pictures, call, error, message):
    with pytest.raises(error) as caught:
        call(model, *pictures[:2])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
