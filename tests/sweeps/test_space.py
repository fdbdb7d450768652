import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semantica.config import from_dict, override, to_dict
from semantica.denoiser import configs
from semantica.errors import ConfigError
from semantica.presets import PRESETS, preset
from semantica.sweeps.space import (
    SETTINGS,
    SpaceConfig,
    Span,
    Swept,
    band_name,
    dimensions,
    grid,
    settings_of,
    trial_config,
    trial_name,
)

ENCODER = {"token_dim": 384, "num_tokens": 65, "pooled_dim": 384}


def swept(name="tiny"):
    made = preset(name)
    return Swept(train=made.train, band=made.band)


def test_a_grid_is_every_combination_once():
    space = SpaceConfig(learning_rate=(1e-3, 2e-3, 3e-3), band=((0.3, 0.9), (-1.0, 1.0)), conditioning=("film", "both"))
    found = grid(space, ["a", "b"])
    assert len(found) == len({tuple(choice.items()) for choice in found}) == 2 * 2 * 2 * 3 * 2
    expected = itertools.product(["a", "b"], ["film", "both"], ["2x2", "none"], [1e-3, 2e-3, 3e-3], ["0.3 to 0.9", "-1 to 1"])
    assert [tuple(choice.values()) for choice in found] == list(expected)


def test_what_is_not_swept_keeps_the_presets_own_value():
    tiny = swept()
    found = settings_of({}, SpaceConfig(patching=()), tiny, ["one"])
    assert list(found) == list(SETTINGS)
    assert trial_config(tiny, found, ENCODER) == tiny


@pytest.mark.parametrize("name", PRESETS)
def test_every_presets_own_settings_give_the_preset_back(name):
    own = swept(name)
    sizes = {field: getattr(own.train.denoiser, field) for field in ENCODER}
    for patching in ((), ("2x2",), ("none",)):
        found = settings_of({}, SpaceConfig(patching=patching), own, ["one"])
        assert trial_config(own, found, sizes) == own


def test_without_patching_the_papers_base_becomes_its_no_patch_shape():
    base = swept("base")
    sizes = {field: getattr(base.train.denoiser, field) for field in ENCODER}
    found = settings_of({"patching": "none"}, SpaceConfig(), base, ["one"])
    assert trial_config(base, found, sizes).train.denoiser == configs.base_no_patch()


@settings(deadline=None, max_examples=30)
@given(
    patching=st.sampled_from(["2x2", "none"]),
    rate=st.floats(1e-6, 1.0),
    band=st.tuples(st.floats(-1, 0.2), st.floats(0.3, 1)),
    conditioning=st.sampled_from(["film", "cross_attention", "both"]),
)
def test_settings_say_what_the_configuration_is(patching, rate, band, conditioning):
    drawn = {"patching": patching, "learning_rate": rate, "band_low": band[0], "band_high": band[1], "conditioning": conditioning}
    tiny = swept()
    chosen = trial_config(tiny, settings_of(drawn, SpaceConfig(), tiny, ["one"]), ENCODER)
    again = settings_of({}, SpaceConfig(), chosen, ["one"])
    assert {name: again[name] for name in drawn} == drawn
    assert from_dict(Swept, to_dict(chosen)) == chosen
    same = override(chosen, {"train.optimizer.learning_rate": tiny.train.optimizer.learning_rate, "band": to_dict(tiny.band)})
    same = override(same, {"train.denoiser": to_dict(tiny.train.denoiser)})
    assert same == tiny  # nothing else has changed


def test_an_encoder_gives_the_denoiser_its_sizes():
    sizes = {"token_dim": 96, "num_tokens": 17, "pooled_dim": 32}
    chosen = trial_config(swept(), settings_of({}, SpaceConfig(), swept(), ["one"]), sizes)
    assert {name: getattr(chosen.train.denoiser, name) for name in sizes} == sizes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": [1e-3]}, r"learning_rat: unknown field; did you mean 'learning_rate'"),
        ({"patching": ["4x4"]}, r"patching\.0: Input should be '2x2' or 'none'"),
        ({"learning_rate": [0.0]}, r"learning_rate must be positive"),
        ({"learning_rate": [1e-3, 1e-3]}, r"learning_rate must be all different"),
        ({"band": [[0.9, 0.3]]}, r"band must be -1 <= low < high <= 1, got \(0.9, 0.3\)"),
        ({"band_low_range": [0.0, 0.2]}, r"band_low_range must be given with band_high_range"),
        ({"band_low_range": [0.0, 0.6], "band_high_range": [0.5, 1.0]}, r"band_high_range must be .* above band_low_range"),
    ],
)
def test_a_wrong_space_is_refused_with_one_sentence(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        from_dict(SpaceConfig, changes)
    assert "\n" not in str(caught.value)


def test_a_range_takes_the_place_of_the_list_that_a_preset_brings():
    ranges = {"learning_rate_range": (1e-4, 1e-3), "band_low_range": (0.0, 0.3), "band_high_range": (0.5, 1.0)}
    space = SpaceConfig(patching=(), learning_rate=(1e-3, 2e-3), band=((0.3, 0.9),), **ranges)
    assert space.bands == ()
    assert dimensions(space, ["one"]) == {
        "learning_rate": Span(1e-4, 1e-3, log=True),
        "band_low": Span(0.0, 0.3),
        "band_high": Span(0.5, 1.0),
    }


def test_a_grid_of_a_range_is_refused():
    with pytest.raises(ConfigError, match=r"space.learning_rate_range: a grid needs a list of values, got a range"):
        grid(SpaceConfig(learning_rate_range=(1e-4, 1e-3)), ["one"])


def test_names_of_trials_differ_where_trials_do_and_are_folders():
    space = SpaceConfig(learning_rate=(1e-3, 2e-3), band=((0.3, 0.9), (-1.0, 1.0)), conditioning=("film", "both"))
    named = [trial_name(0, settings_of(choice, space, swept(), ["a", "b"])) for choice in grid(space, ["a", "b"])]
    assert len(set(named)) == len(named) == 32
    assert not any(set(name) & set("/\\ *?:") for name in named)


def test_bands_are_one_dimension():
    space = SpaceConfig(patching=(), band=((0.3, 0.9), (-1.0, 1.0)))
    assert list(dimensions(space, ["one"])) == ["band"]
    found = settings_of({"band": band_name(-1, 1)}, space, swept(), ["one"])
    assert (found["band_low"], found["band_high"]) == (-1.0, 1.0)
