"""The diffusers form of a model: its scheduler is the house's sampler, its pictures are those of `semantica.load`, bit for bit."""

import importlib
import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

import semantica
from semantica.diffusion.process import diffuse, eps_from_x, v_from_x
from semantica.diffusion.samplers import ddpm, levels_of
from semantica.diffusion.schedule import logsnr
from semantica.diffusion.settings import SamplerConfig, ScheduleConfig
from semantica.errors import ConfigError
from semantica.generation.diffusers_pipeline import SemanticaPipeline, SemanticaScheduler
from semantica.generation.generate import SampleNoise, to_pixels

SCHEDULE = ScheduleConfig(resolution_px=64, logsnr_min=-12.0, logsnr_max=14.0)


@pytest.fixture(scope="module")
def model(runs):
    return semantica.load(runs.rich.checkpoint, "cpu", runs.rich.encoder)


@pytest.fixture
def pipe(model):
    made = SemanticaPipeline.of(model)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def pictures(runs):
    return [Image.open(io.BytesIO(data)) for data in runs.plain.pictures[:3]]


def generators(number):
    return [torch.Generator().manual_seed(seed) for seed in range(number)]


@pytest.mark.parametrize("w", [0.0, 0.1, 0.5, 2.0])
def test_the_pipeline_draws_what_the_model_draws_bit_for_bit(model, pipe, pictures, w):
    ours = model(pictures, guidance=w, num_samples=2, num_steps=7, similarity=0.5, seed=3)
    noise = pipe.generators(pictures, 2, seed=3)
    theirs = pipe(pictures, 7, guidance_scale=1 + w, num_images_per_prompt=2, similarity=0.5, generator=noise).images
    assert len(theirs) == 6
    expected = [picture for drawn in ours for picture in drawn]
    assert all(np.array_equal(a, b) for a, b in zip(theirs, expected, strict=True))
    assert np.stack([np.asarray(picture) for picture in theirs]).std() > 20


def test_the_pipeline_is_the_sampler_fed_the_same_sample_noise(model, pipe, pictures):
    """Before anything is rounded to pixels, and with the house's SampleNoise on its side."""
    asked = model.asked([[picture] for picture in pictures], 1)
    noise = SampleNoise(0, asked.names, (3, 16, 16))
    with torch.no_grad():
        x = ddpm(model.model.bind(asked.cond), noise.draw(), levels_of(SamplerConfig(num_steps=9), model.release.schedule), noise)
    got = pipe(pictures, 9, guidance_scale=1, generator=pipe.generators(pictures), output_type="pt", return_dict=False)[0]
    assert torch.equal(got, (x + 1) / 2)
    arrays = pipe(pictures, 9, guidance_scale=1, generator=pipe.generators(pictures), output_type="np").images
    assert np.array_equal(arrays, got.permute(0, 2, 3, 1).numpy())
    drawn = pipe(pictures, 9, guidance_scale=1, generator=pipe.generators(pictures)).images
    assert np.array_equal(np.stack(drawn), to_pixels(x).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction", "epsilon"])
def test_the_scheduler_alone_walks_as_ddpm_does_from_any_prediction(prediction_type):
    """A denoiser that says "the picture is half of z"; a prediction of v or eps goes to x_hat and back, so only nearly."""
    config = SamplerConfig(num_steps=11, interpolation=0.3, clip=False)
    scheduler = SemanticaScheduler.from_config(SemanticaScheduler.of(SCHEDULE, config).config, prediction_type=prediction_type)
    assert scheduler.schedule == SCHEDULE
    scheduler.set_timesteps(11)
    noise, z = generators(2), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    kept = generators(2)
    expected = ddpm(
        lambda z, logsnr: z / 2,
        z,
        levels_of(config, SCHEDULE),
        lambda index: torch.stack([torch.randn(3, 8, 8, generator=g) for g in kept]),
        interpolation=0.3,
        clip=False,
    )
    for timestep in scheduler.timesteps:
        level = scheduler.logsnr(timestep, z)
        x_hat = z / 2
        outputs = {"sample": x_hat, "v_prediction": v_from_x(z, x_hat, level), "epsilon": eps_from_x(z, x_hat, level)}
        z = scheduler.step(outputs[prediction_type], timestep, z, noise).prev_sample
    if prediction_type == "sample":
        assert torch.equal(z, expected)
    else:
        torch.testing.assert_close(z, expected, rtol=1e-3, atol=1e-3)


def test_the_last_step_of_the_scheduler_returns_x_hat_clipped_and_a_tuple_when_asked():
    scheduler = SemanticaScheduler.of(SCHEDULE, SamplerConfig())
    scheduler.set_timesteps(4)
    z, x_hat = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 3.0)
    last, original = scheduler.step(x_hat, scheduler.timesteps[-1], z, return_dict=False)
    assert torch.equal(last, torch.ones_like(z))
    assert torch.equal(original, torch.ones_like(z))


def test_added_noise_is_that_of_the_forward_process():
    scheduler = SemanticaScheduler.of(SCHEDULE, SamplerConfig())
    x, eps = torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 0.5, 1.0])
    expected = diffuse(x, eps, logsnr(t.double(), SCHEDULE).float())
    assert torch.equal(scheduler.add_noise(x, eps, t), expected)
    assert float((expected[0] - x[0]).abs().max()) < 0.01
    assert float((expected[2] - eps[2]).abs().max()) < 0.02


def test_the_scheduler_is_saved_and_loaded_as_diffusers_does(tmp_path):
    config = SamplerConfig(interpolation=0.7, clip=False)
    SemanticaScheduler.of(SCHEDULE, config).save_pretrained(tmp_path)
    back = SemanticaScheduler.from_pretrained(tmp_path)
    assert back.schedule == SCHEDULE
    assert (back.config.interpolation, back.config.clip_sample) == (0.7, False)


def test_the_pipeline_is_saved_as_a_release_and_loaded_from_it(runs, model, pipe, pictures, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    back = SemanticaPipeline.from_pretrained(tmp_path / "saved", "cpu", runs.rich.encoder)
    back.set_progress_bar_config(disable=True)
    first, second = (p(pictures[0], 5, 1.5, 2, generator=p.generators(pictures[0], 2)).images for p in (pipe, back))
    ours = semantica.load(tmp_path / "saved", "cpu", runs.rich.encoder)(pictures[0], num_samples=2, num_steps=5)
    for a, b, c in zip(first, second, ours, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)


def test_what_diffusers_expects_of_any_pipeline_holds(model, pipe, pictures):
    assert set(pipe.components) == {"denoiser", "scheduler", "semantica"}
    again = SemanticaPipeline(**pipe.components)
    assert again.denoiser.network is model.model.network
    assert pipe.to("cpu").device == torch.device("cpu")
    assert pipe.dtype == torch.float32
    seen = []

    def on_step(pipeline, index, timestep, tensors):
        seen.append((index, float(timestep), tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])} if index == 2 else {}

    black = pipe(pictures[0], 3, callback_on_step_end=on_step, output_type="pt").images
    assert [index for index, _, _ in seen] == [0, 1, 2]
    assert [t for _, t, _ in seen] == pytest.approx([1, 2 / 3, 1 / 3])
    assert torch.equal(black, torch.full((1, 3, 16, 16), 0.5))


def test_one_callback_does_the_same_in_the_pipeline_and_in_the_model(model, pipe, pictures):
    seen = []

    def fade(step):
        seen.append((step.index, step.samples, step.names, step.logsnr.tolist(), step.x_hat.abs().max().item()))
        return step.z * torch.where(torch.tensor([k == 1 for k in step.samples])[:, None, None, None], 0.5, 1.0)

    ours = model(pictures[:2], num_samples=1, num_steps=5, callback=fade)
    at_the_model, seen = seen, []
    noise = pipe.generators(pictures[:2])
    theirs = pipe(pictures[:2], 5, guidance_scale=1.5, generator=noise, callback=fade).images
    assert seen == at_the_model
    assert len(seen) == 4
    assert all(np.array_equal(a[0], b) for a, b in zip(ours, theirs, strict=True))
    plain = pipe(pictures[:2], 5, guidance_scale=1.5, generator=pipe.generators(pictures[:2])).images
    assert [np.array_equal(a, b) for a, b in zip(plain, theirs, strict=True)] == [True, False]


def test_without_generators_the_noise_is_torchs_own(pipe, pictures):
    torch.manual_seed(0)
    first = pipe(pictures[0], 3, output_type="np").images
    torch.manual_seed(0)
    assert np.array_equal(pipe(pictures[0], 3, output_type="np").images, first)
    assert not np.array_equal(pipe(pictures[0], 3, output_type="np").images, first)


def test_what_the_pipeline_cannot_do_is_refused(pipe, pictures):
    with pytest.raises(ConfigError, match=r"guidance_scale must be 1 \(none\) or more: it is 1 \+ w, got 0.5"):
        pipe(pictures[0], guidance_scale=0.5)
    with pytest.raises(ConfigError, match="output_type must be pil, np or pt, got 'latent'"):
        pipe(pictures[0], output_type="latent")
    with pytest.raises(ConfigError, match="sampler must be ddpm with steps equal in t, got ddim"):
        SemanticaScheduler.of(SCHEDULE, SamplerConfig(name="ddim"))
    with pytest.raises(ConfigError, match=r"timestep: must be one of scheduler.timesteps, got 0.3"):
        SemanticaScheduler.of(SCHEDULE, SamplerConfig()).logsnr(0.3, torch.zeros(1, 3, 8, 8))


def test_without_diffusers_one_sentence_says_what_to_install(monkeypatch):
    name = "semantica.generation.diffusers_pipeline"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"needs diffusers: pip install 'semantica\[diffusers\]'"):
        importlib.import_module(name)
