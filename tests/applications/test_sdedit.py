"""Editing from a guide: what a strength is, what stays, and the flow of a Gaussian from the middle."""

import numpy as np
import pytest
import torch
from PIL import Image

from semantica.applications.drawing import Drawing, level_of
from semantica.diffusion.schedule import alpha_sigma
from semantica.diffusion.settings import SamplerConfig
from semantica.errors import ConfigError, DataError
from semantica.generation.conditioning_images import square_of
from semantica.generation.generate import to_pixels
from tests.diffusion.oracles import gaussian_denoiser
from tests.generation.drawing import pixels

SAMPLERS = ["ddpm", "ddim", "dpm_solver"]
FEW = {"num_steps": 6}
LEFT = torch.zeros(16, 16)
LEFT[:, :8] = 1


def image(x):
    return to_pixels(x).permute(0, 2, 3, 1).numpy().astype(int)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_1_is_plain_sampling_bit_for_bit(model, pictures, x, sampler):
    asked = {"sampler": sampler, "num_samples": 3, "seed": 4, "guidance": 0.7, **FEW}
    drawn = model.edit(x[0], like=pictures[0], strength=1, **asked)
    assert np.array_equal(pixels(drawn), pixels(model(pictures[0], **asked)))


def test_strength_0_is_the_guide_and_calls_no_network(with_denoiser, x):
    model = with_denoiser(gaussian_denoiser(0.0, 1.0))
    assert np.array_equal(pixels(model.edit(x[0], strength=0.0)), image(x[:1]))
    assert model.model.calls == []


@pytest.mark.parametrize("spacing", ["t", "logsnr"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver"])
@pytest.mark.parametrize("strength", [0.3, 0.77])
def test_a_strength_is_one_level_whatever_the_sampler_and_the_spacing(with_denoiser, x, sampler, spacing, strength):
    """The flow of N(mean, std²) keeps (z - alpha mean) / std(z) from the level at which the guide was noised."""
    mean, std = 0.1, 0.3
    model = with_denoiser(gaussian_denoiser(mean, std))
    config = SamplerConfig(name=sampler, num_steps=300, spacing=spacing)
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    drawn = pixels(model.edit(x[0], strength=strength, sampler=config, noise=noise))
    alpha, sigma = alpha_sigma(torch.tensor(level_of(strength, model)))
    expected = mean + std * (alpha * x[:1] + sigma * noise - alpha * mean) / ((alpha * std) ** 2 + sigma**2).sqrt()
    assert np.abs(drawn - image(expected)).max() <= 2


def test_more_strength_leaves_the_guide_further_behind(with_denoiser, x):
    model = with_denoiser(gaussian_denoiser(0.0, 0.4))
    far = [
        np.abs(pixels(model.edit(x[0], strength=s, sampler="ddim", num_steps=20)) - image(x[:1])).mean() for s in (0.1, 0.3, 0.6)
    ]
    assert far[0] < far[1] < far[2]


@pytest.mark.parametrize("strength", [0.5, 1])
def test_what_must_stay_stays_exactly_and_the_rest_does_not(model, x, strength):
    drawn = pixels(model.edit(x[0], strength=strength, keep=LEFT, repeats=2, **FEW))
    assert np.array_equal(drawn[:, :, :8], image(x[:1])[:, :, :8])
    assert not np.array_equal(drawn[:, :, 8:], image(x[:1])[:, :, 8:])


def test_what_must_stay_has_the_noise_of_the_start_at_every_level(model, x):
    seen = []

    def watch(step):
        alpha, sigma = alpha_sigma(step.logsnr[:, None, None, None])
        seen.append(((step.z - alpha * x[:1]) / sigma)[..., :8])
        return step.z

    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model.edit(x[0], keep=LEFT, strength=0.7, noise=noise, callback=watch, sampler="ddim", num_steps=10)
    assert len(seen) > 3
    for eps in seen:
        torch.testing.assert_close(eps, noise[..., :8], rtol=0, atol=1e-2)


def test_a_mask_that_keeps_everything_returns_the_picture(model, pictures):
    (drawn,) = model.edit(pictures[0], like=pictures[1], keep=Image.new("L", pictures[0].size, 255), strength=0.8, **FEW)
    assert np.array_equal(np.asarray(drawn), square_of(pictures[0], 16).permute(1, 2, 0).numpy())


def test_a_repeat_begins_from_the_result(with_denoiser, x):
    """Each pass takes the same share of the guide's distance to the mean away, if z is not noise but alpha x."""
    model, noise = with_denoiser(gaussian_denoiser(0.0, 0.3)), torch.zeros(1, 3, 16, 16)
    asked = {"strength": 0.3, "sampler": "ddim", "num_steps": 200, "noise": noise}
    once, twice = (pixels(model.edit(x[0], repeats=n, **asked)) / 127.5 - 1 for n in (1, 2))
    alpha, sigma = alpha_sigma(torch.tensor(level_of(0.3, model)))
    share = float(alpha * 0.3 / ((alpha * 0.3) ** 2 + sigma**2).sqrt())
    guide = x[:1].permute(0, 2, 3, 1).numpy()
    assert np.abs(once - share * guide).max() < 0.02
    added = twice - share**2 * guide  # the second pass draws its own noise
    slope = (twice * guide).sum() / (guide**2).sum()  # of the second guide, which is the first result
    assert slope == pytest.approx(share**2, abs=0.06)
    assert added.std() == pytest.approx(float(0.3 * sigma / ((alpha * 0.3) ** 2 + sigma**2).sqrt()), rel=0.1)


def test_a_picture_is_edited_the_same_alone_and_among_others(model, pictures):
    three = model.edit(pictures[:3], like=pictures[3], keep=Image.new("1", (40, 40)), num_samples=2, **FEW)
    alone = model.edit(pictures[1], like=pictures[3], keep=Image.new("1", (40, 40)), num_samples=2, **FEW)
    assert [len(row) for row in three] == [2, 2, 2]
    assert np.abs(pixels(three[1]) - pixels(alone)).max() <= 1
    assert np.abs(pixels(three[1]) - pixels(three[0])).max() > 1


def test_without_a_conditioning_image_there_is_no_guidance_and_the_guide_keys_the_noise(model, x):
    first, second = model.edit(list(x), strength=1, **FEW)
    assert not np.array_equal(pixels(first), pixels(second))
    assert np.array_equal(pixels(first), pixels(model.edit(list(x), strength=1, guidance=3.0, **FEW)[0]))


def test_guidance_costs_nothing_where_there_is_nothing_to_guide_by(model, pictures):
    null, told = model.conditioning.null(1), model.conditioning([[pictures[0]]])[0]
    assert [Drawing.of(model, cond, ["a"], {"guidance": 3}).guidance for cond in (null, told)] == [0, 3]


def test_a_callback_sees_the_samples_and_may_edit_them(model, x):
    seen = []

    def erase(step):
        seen.append((step.index, list(step.samples), len(step.names)))
        return torch.zeros_like(step.z)

    drawn = model.edit(list(x), strength=1, num_samples=2, callback=erase, **FEW)
    assert seen == [(index, [0, 1, 2, 3], 4) for index in range(5)]
    assert np.abs(pixels(drawn[0]) - pixels(drawn[1])).max() <= 1


def test_several_conditioning_images_may_be_given_for_one_guide(rich, pictures, x):
    both, one = rich.edit(x[0], like=pictures[:2], strength=1, **FEW), rich.edit(x[0], like=pictures[0], strength=1, **FEW)
    assert np.array_equal(pixels(both), pixels(rich([pictures[:2]], num_samples=1, **FEW)[0]))
    assert not np.array_equal(pixels(both), pixels(one))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"strength": 1.01}, ConfigError, "strength must be a noise level in [0, 1], got 1.01"),
        ({"strength": float("nan")}, ConfigError, "strength must be a noise level in [0, 1], got nan"),
        (
            {"guide": torch.zeros(3, 8, 8)},
            DataError,
            "guide: expected x of shape (3, 16, 16) in [-1, 1], got torch.float32 (3, 8, 8)",
        ),
        ({"guide": "nowhere.png"}, DataError, "guide: nowhere.png cannot be read"),
        ({"guide": 3}, DataError, "guide: expected a PIL picture or a path, got int"),
        ({"keep": torch.ones(8, 16)}, DataError, "keep: the mask is 16x8, but its picture is 16x16; make both of one size"),
        ({"keep": "nowhere.png"}, DataError, "keep: the mask nowhere.png cannot be read"),
        ({"keep": [LEFT, LEFT]}, DataError, "keep: expected one mask or one per picture, 1, got 2"),
        ({"repeats": 0}, ConfigError, "repeats must be at least 1, got 0"),
        ({"num_samples": 0}, ConfigError, "num_samples must be at least 1, got 0"),
        ({"guidance": -1}, ConfigError, "guidance must be 0 or more, got -1"),
        ({"similarity": 0.5}, ConfigError, "similarity: this model was not trained to be told one"),
        ({"signals": {"text": torch.zeros(1)}}, ConfigError, "this model was not trained to be told 'text'"),
        (
            {"noise": torch.zeros(2, 3, 16, 16)},
            ConfigError,
            "noise must be one z per sample, shape (1, 3, 16, 16), got (2, 3, 16, 16)",
        ),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_input_is_refused_in_one_line(model, x, changes, error, message):
    asked = {"guide": x[0], **changes}
    with pytest.raises(error) as caught:
        model.edit(asked.pop("guide"), **asked)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_conditioning_images_for_another_number_of_pictures_are_refused(model, pictures, x):
    with pytest.raises(DataError, match="like: expected conditioning images for 1 or all of the 2 pictures, got 3"):
        model.edit(list(x), like=pictures[:3])


def test_an_unknown_keyword_is_refused_with_the_known_ones(model, x):
    with pytest.raises(TypeError, match="unexpected keyword 'steps'; known are guidance, similarity, num_steps"):
        model.edit(x[0], steps=3)


def test_a_mask_is_cut_and_turned_as_its_picture(model, tmp_path):
    """A wide picture that is stored on its side, of which the mask keeps the upper left of what is seen."""
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:10, 10:20] = 255  # the upper left quarter of the middle square
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by 90 degrees, so stored turned the other way
    Image.fromarray(wide).rotate(90, expand=True).save(tmp_path / "wide.png", exif=exif)
    mask = Image.fromarray(wide[..., 0])
    drawn = pixels(model.edit(str(tmp_path / "wide.png"), keep=mask, strength=1, **FEW))[0]
    own = square_of(tmp_path / "wide.png", 16).permute(1, 2, 0).numpy()
    assert own[2, 2].min() > 240 > 10 > own[12, 12].max()
    assert np.array_equal(drawn[:8, :8], own[:8, :8])
    assert (drawn != own).any(-1).mean() > 0.6
