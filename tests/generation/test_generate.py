"""Which pictures condition, and samples that depend on their name alone."""

import io
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from semantica.conditioning.values import Conditioning
from semantica.data.pictures import PictureRef, decode
from semantica.denoiser.configs import DenoiserConfig, StageConfig
from semantica.denoiser.uvit import UViT
from semantica.diffusion.process import x_from_v
from semantica.diffusion.samplers import ddpm, levels_of, sampler, walk
from semantica.diffusion.settings import SAMPLERS, GuidanceConfig, SamplerConfig, ScheduleConfig
from semantica.errors import ConfigError
from semantica.generation.generate import SampleNoise, choose_conditions, png_bytes, sample_pictures, to_pixels
from semantica.generation.model import Model
from semantica.generation.settings import GenerateConfig
from semantica.pairs.loader import to_unit

SCHEDULE, SAMPLER = ScheduleConfig(resolution_px=16), SamplerConfig(num_steps=6)
NAMES = [f"image{i}/0" for i in range(5)]


@pytest.fixture(scope="module")
def network():
    """A small U-ViT in which no weight is zero."""
    config = DenoiserConfig(
        resolution_px=16,
        patch_px=2,
        stages=(
            StageConfig(channels=16, num_blocks=1, kind="conv"),
            StageConfig(channels=16, num_blocks=1, kind="transformer"),
        ),
        conditioning="both",
        token_dim=8,
        num_tokens=3,
        pooled_dim=8,
        noise_embedding_dim=16,
        head_dim=8,
        norm_groups=4,
    )
    generator = torch.Generator().manual_seed(0)
    made = UViT(config, generator)
    with torch.no_grad():
        for p in made.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return made.eval()


@pytest.fixture(scope="module")
def cond():
    generator = torch.Generator().manual_seed(1)
    return Conditioning.of(torch.randn(5, 3, 8, generator=generator), torch.randn(5, 8, generator=generator))


def sample(network, cond, names, guidance=0.5, seed=0, max_rows=None, callback=None, **changes):
    config = GenerateConfig(**{"sampler": SAMPLER, "seed": seed, **changes})
    return sample_pictures(Model(network, SCHEDULE), cond, names, guidance, config, max_rows, callback)


def candidates(**sizes):
    return [PictureRef(f"{episode}{i}", episode, 0, 0) for episode, size in sizes.items() for i in range(size)]


def test_conditions_come_from_the_episodes_in_turn():
    # Of 100 pictures 70 are of one page: so are 70% of the conditions, as in the set that samples are compared with.
    pool = candidates(a=70, b=20, c=10)
    drawn = Counter(c.episode_id for seed in range(200) for c in choose_conditions(pool, 10, seed=seed))
    assert drawn["a"] / 2000 == pytest.approx(0.7, abs=0.05)  # five standard errors of 2000 draws
    assert drawn["b"] / 2000 == pytest.approx(0.2, abs=0.045)


def test_fewer_conditions_are_the_first_of_more():
    pool = candidates(a=4, b=3, c=5)
    whole = choose_conditions(pool, 100, seed=0)
    assert Counter(whole) == Counter(pool)
    for number in range(13):
        assert choose_conditions(pool, number, seed=0) == whole[:number]
    assert choose_conditions([], 4, seed=0) == []


def test_the_choice_depends_on_seed_and_ids_and_not_on_the_order_of_the_shards():
    # A picture on two pages, too, is counted to the same one.
    pool = [*candidates(a=5, b=5, c=5), PictureRef("a1", "b", 0, 0), PictureRef("a1", "c", 0, 0)]
    first = choose_conditions(pool, 8, seed=0)
    for seed in range(5):
        shuffled = [pool[i] for i in np.random.default_rng(seed).permutation(len(pool))]
        assert choose_conditions(shuffled, 8, seed=0) == first
    assert choose_conditions(pool, 8, seed=1) != first


def test_a_picture_on_two_pages_is_chosen_once():
    chosen = choose_conditions([*candidates(a=2, b=2), PictureRef("a0", "b", 0, 0)], 10, seed=0)
    assert sorted(c.image_id for c in chosen) == ["a0", "a1", "b0", "b1"]


def test_samples_in_two_chunks_are_the_samples_in_one(network, cond):
    whole = sample(network, cond, NAMES)
    parts = torch.cat([sample(network, cond[:2], NAMES[:2]), sample(network, cond[2:], NAMES[2:])])
    # Another batch size sums in another order; a value beside a rounding edge may become the next level.
    assert (whole.int() - parts.int()).abs().max() <= 1
    assert (whole != parts).float().mean() < 0.01
    assert whole.float().std() > 20


def test_a_sample_depends_on_its_name_its_seed_and_its_condition(network, cond):
    whole = sample(network, cond, NAMES)
    assert torch.equal(sample(network, cond, NAMES), whole)
    order = [4, 2, 0, 1, 3]
    shuffled = sample(network, cond[torch.tensor(order)], [NAMES[i] for i in order])
    assert (shuffled.int() - whole[order].int()).abs().max() <= 1
    other_condition = sample(network, cond[torch.tensor([1, 0, 2, 3, 4])], NAMES)
    for changed in (sample(network, cond, NAMES, seed=1), sample(network, cond, [f"{n}1" for n in NAMES])):
        assert all(not torch.equal(changed[i], whole[i]) for i in range(5))
    assert [torch.equal(other_condition[i], whole[i]) for i in range(5)] == [False, False, True, True, True]


@pytest.fixture
def calls(network):
    """The number of rows of every call of the network, and "prepared" for every time that it prepared a conditioning."""
    seen, prepare = [], network.prepare
    hook = network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    network.prepare = lambda cond: seen.append("prepared") or prepare(cond)
    yield seen
    hook.remove()
    del network.prepare


def test_without_guidance_the_conditional_model_alone_is_asked_and_sampled(network, cond, calls):
    got = sample(network, cond, NAMES, guidance=0.0)
    assert calls == ["prepared", *[5] * SAMPLER.num_steps]
    noise = SampleNoise(0, NAMES, (3, 16, 16))
    x = ddpm(lambda z, logsnr: x_from_v(z, network(z, logsnr, cond), logsnr), noise.draw(), levels_of(SAMPLER, SCHEDULE), noise)
    assert torch.equal(got, to_pixels(x))


def test_with_guidance_both_branches_are_asked_at_once_and_pictures_change(network, cond, calls):
    guided = sample(network, cond, NAMES, guidance=1.0)
    assert calls == ["prepared", *[10] * SAMPLER.num_steps]
    assert not torch.equal(guided, sample(network, cond, NAMES, guidance=0.0))


def test_what_goes_beyond_plain_guidance_and_the_sampler_are_those_of_the_configuration(network, cond):
    plain = sample(network, cond, NAMES, guidance=1.0)
    assert not torch.equal(sample(network, cond, NAMES, 1.0, beyond=GuidanceConfig(rescale=0.7)), plain)
    few = SamplerConfig(name="dpm_solver", num_steps=3)
    assert not torch.equal(sample(network, cond, NAMES, 1.0, sampler=few), plain)


@pytest.mark.parametrize("max_rows", [1, 4, 5, 1000])
def test_no_more_rows_than_allowed_are_asked_at_once(network, cond, calls, max_rows):
    few = sample(network, cond, NAMES, max_rows=max_rows)
    asked = [rows for rows in calls if rows != "prepared"]
    assert max(asked) <= max(2, max_rows)  # both branches of one picture at least
    assert sum(asked) == 10 * SAMPLER.num_steps
    assert (few.int() - sample(network, cond, NAMES).int()).abs().max() <= 1


def halfway(denoise, z, levels, *, clip, callback):
    """A sampler that the project does not have."""
    return walk(lambda _, z, x_hat, t, s: (z + x_hat) / 2, denoise, z, levels, clip=clip, callback=callback)


def test_a_sampler_that_is_registered_in_one_place_draws(network, cond, calls, monkeypatch):
    monkeypatch.setattr(SAMPLERS, "_parts", {name: SAMPLERS[name] for name in SAMPLERS})
    sampler("halfway", spacing="t")(halfway)
    drawn = sample(network, cond, NAMES, sampler=SamplerConfig(name="halfway", num_steps=4))
    assert calls == ["prepared", *[10] * 4]
    assert not torch.equal(drawn, sample(network, cond, NAMES, sampler=SamplerConfig(name="ddim", num_steps=4)))


@pytest.mark.parametrize("max_rows", [None, 4])
def test_a_callback_sees_every_sample_at_every_step_but_the_last_and_knows_which(network, cond, max_rows):
    seen = []

    def watch(step):
        assert step.names == tuple(NAMES[i] for i in step.samples)
        assert step.z.shape == step.x_hat.shape == (len(step.samples), 3, 16, 16)
        seen.append((step.index, list(step.samples)))
        return step.z

    drawn = sample(network, cond, NAMES, max_rows=max_rows, callback=watch)
    chunks = [[0, 1, 2, 3, 4]] if max_rows is None else [[0, 1], [2, 3], [4]]
    assert seen == [(index, chunk) for chunk in chunks for index in range(SAMPLER.num_steps - 1)]
    assert torch.equal(drawn, sample(network, cond, NAMES, max_rows=max_rows))


def test_a_callback_edits_some_samples_and_leaves_the_others(network, cond):
    def erase_the_last(step):
        return torch.where(torch.tensor([i == 4 for i in step.samples])[:, None, None, None], 0, step.z)

    plain = sample(network, cond, NAMES, max_rows=4)
    edited = sample(network, cond, NAMES, max_rows=4, callback=erase_the_last)
    assert torch.equal(edited[:4], plain[:4])
    assert not torch.equal(edited[4], plain[4])


def test_a_callback_may_take_gradients_of_the_network(network, cond):
    """What a callback is given takes part in autograd: x_hat of its z can be steered."""

    def steer(step):
        model = Model(network, SCHEDULE)
        with torch.enable_grad():
            z = step.z.detach().requires_grad_()
            x_hat = model.bind(cond[step.samples.start : step.samples.stop])(z, step.logsnr)
            (slope,) = torch.autograd.grad(x_hat.square().sum(), z)
        assert slope.abs().sum() > 0
        return step.z - slope

    drawn = sample(network, cond, NAMES, callback=steer)
    assert not torch.equal(drawn, sample(network, cond, NAMES))


def test_a_chunk_that_does_not_fit_is_shown_again_from_its_first_step(network, cond):
    seen = []

    def fails_once(step):
        seen.append((step.index, len(step.samples)))
        if len(seen) == 2:
            raise torch.OutOfMemoryError
        return step.z

    drawn = sample(network, cond, NAMES, callback=fails_once)
    assert seen == [(0, 5), (1, 5), *((i, 3) for i in range(5)), *((i, 2) for i in range(5))]
    assert (drawn.int() - sample(network, cond, NAMES).int()).abs().max() <= 1


def test_every_guidance_weight_starts_from_the_same_noise():
    first, second = (SampleNoise(3, ["a/0", "b/1"], (3, 4, 4)) for _ in range(2))
    z = first.draw()
    assert torch.equal(z, second.draw())
    later = first(0)
    assert torch.equal(later, second(0))
    assert not torch.equal(later, z)
    assert torch.equal(SampleNoise(3, ["b/1"], (3, 4, 4)).draw()[0], z[1])


def test_the_noise_of_many_samples_is_standard_normal():
    z = SampleNoise(0, [f"n/{i}" for i in range(500)], (3, 4, 4)).draw()
    assert float(z.mean()) == pytest.approx(0, abs=4 / z.numel() ** 0.5)
    assert float(z.var()) == pytest.approx(1, abs=4 * (2 / z.numel()) ** 0.5)


def test_every_level_survives_the_unit_range():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_pixels(to_unit(levels)), levels)


def test_values_outside_the_range_are_clipped_and_others_go_to_the_nearest_level():
    x = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0, 1 - 0.99 / 255, 1 - 1.01 / 255]).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    assert to_pixels(x)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255, 255, 254]


def test_png_keeps_every_pixel_of_a_tensor_and_of_an_array():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 16, 16), np.uint8))
    data = png_bytes(pixels)
    assert Image.open(io.BytesIO(data)).format == "PNG"
    assert torch.equal(decode(data, 16), pixels)
    assert png_bytes(pixels.permute(1, 2, 0).numpy()) == data


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"guidance": ()}, "guidance"),
        ({"guidance": (-0.1,)}, "guidance"),
        ({"guidance": (0.5, 0.5)}, "guidance"),
        ({"num_conditions": 0}, "num_conditions"),
        ({"samples_per_condition": 0}, "samples_per_condition"),
        ({"batch_size": 0}, "batch_size"),
        ({"similarity": 1.5}, "similarity"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes, field):
    with pytest.raises(ConfigError) as caught:
        GenerateConfig(**changes)
    assert str(caught.value).startswith(f"{field} must be")
