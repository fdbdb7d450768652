"""The strict door: what it refuses, by name, and what comes back as it went in."""

import dataclasses
import pickle
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semantica.config import config, config_hash, from_args, from_dict, override, read_yaml, require, take_flag, to_dict, to_yaml
from semantica.encoders.settings import EncoderConfig
from semantica.errors import ConfigError, FieldError
from semantica.pairs.selection import BandConfig
from semantica.training.recipe import EmaConfig, OptimizerConfig


@config
class Inner:
    rate: float = 1e-4
    kind: Literal["a", "b"] = "a"

    def __post_init__(self):
        require(self.rate > 0, "rate", "positive", self.rate)


@config
class Layer:
    width: int

    def __post_init__(self):
        require(self.width > 0, "width", "positive", self.width)


@config
class Outer:
    steps: int
    inner: Inner = Inner()
    layers: tuple[Layer, ...] = ()
    name: str = "run"
    last: int = 1

    def __post_init__(self):
        require(self.last >= 1, "last", "1 or more", self.last)


def refusal(call, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def parse(*words, **defaults):
    return from_args(Outer, words, prog="test", description="", defaults=defaults)


def test_an_unknown_field_is_refused_with_the_nearest_name_at_every_depth():
    assert refusal(from_dict, Outer, {"steps": 1, "nam": "x"}) == "nam: unknown field; did you mean 'name'?"
    nested = {"steps": 1, "inner": {"ratte": 1.0}}
    assert refusal(from_dict, Outer, nested) == "inner.ratte: unknown field; did you mean 'rate'?"
    in_list = {"steps": 1, "layers": [{"width": 1}, {"width": 1, "with": 2}]}
    assert refusal(from_dict, Outer, in_list) == "layers.1.with: unknown field; did you mean 'width'?"


def test_an_unknown_field_like_no_other_lists_those_there_are():
    message = refusal(from_dict, Outer, {"steps": 1, "zzz": 0})
    assert message == "zzz: unknown field; known fields: steps, inner, layers, name, last"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"steps": "12"}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": None}, "steps"),
        ({"steps": 1, "inner": {"rate": "1e-4"}}, "inner.rate"),
        ({"steps": 1, "inner": {"kind": "c"}}, "inner.kind"),
        ({"steps": 1, "layers": [{"width": "2"}]}, "layers.0.width"),
    ],
)
def test_a_mistyped_field_is_refused_by_name(values, field):
    assert refusal(from_dict, Outer, values).startswith(f"{field}: Input should be")


def test_a_missing_field_is_refused_by_name():
    assert refusal(from_dict, Outer, {}) == "steps: missing"
    assert refusal(from_dict, Outer, {"steps": 1, "layers": [{}]}) == "layers.0.width: missing"


def test_every_wrong_field_is_named_in_one_message():
    message = refusal(from_dict, Outer, {"stepz": 1, "inner": {"rate": "x"}})
    assert all(part in message for part in ("stepz: unknown", "steps: missing", "inner.rate: Input"))


def test_a_range_check_names_its_field_and_what_was_got():
    assert "inner.rate must be positive, got -1.0" in refusal(from_dict, Outer, {"steps": 1, "inner": {"rate": -1.0}})


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: BandConfig(low=0.9, high=0.3), "low"),
        (lambda: BandConfig(low=-1.5), "low"),
        (lambda: BandConfig(low=float("nan")), "low"),
        (lambda: EncoderConfig(image_px=225), "image_px"),
        (lambda: OptimizerConfig(learning_rate=0.0), "learning_rate"),
        (lambda: OptimizerConfig(warmup_steps=-1), "warmup_steps"),
        (lambda: OptimizerConfig(beta2=1.0), "beta2"),
        (lambda: EmaConfig(decay=1.0), "decay"),
        (lambda: EmaConfig(warmup=0), "warmup"),
    ],
)
def test_values_out_of_range_are_refused_when_made(make, field):
    assert refusal(make).startswith(f"{field} must be ")


def test_a_config_is_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Inner().rate = 1.0
    with pytest.raises(TypeError):
        Inner(1.0)


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1E5", 1e5), ("-2.5e-3", -2.5e-3), (".5e1", 5.0), ("3.e2", 300.0), ("+1e+2", 100.0)]
)
def test_yaml_exponents_are_numbers(tmp_path, text, value):
    path = tmp_path / "c.yaml"
    path.write_text(f"rate: {text}\nquoted: '{text}'\nword: {text}x\n")
    assert read_yaml(path) == {"rate": value, "quoted": text, "word": f"{text}x"}


@settings(deadline=None, max_examples=60)
@given(name=st.one_of(st.text(), st.from_regex(r"[-+]?\d{1,3}\.?\d?[eE][-+]?\d{1,2}", fullmatch=True)), rate=st.floats(1e-30, 1e30))
def test_every_text_and_number_survives_yaml(name, rate, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    given_values = Outer(steps=3, inner=Inner(rate=rate), layers=(Layer(width=2),), name=name)
    path.write_text(to_yaml(given_values), encoding="utf-8")
    assert from_dict(Outer, read_yaml(path)) == given_values


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"steps: [1", "not valid YAML"),
        (b"- 1\n- 2\n", "expected a mapping of fields, got list"),
        (b"name: \xff\xfe\n", "not valid YAML"),
        (b"1: 2\n", "expected names of fields, got 1"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused_by_its_path(tmp_path, content, says):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    message = refusal(read_yaml, path)
    assert str(path) in message
    assert says in message


def test_a_missing_yaml_file_is_refused_and_an_empty_one_says_nothing(tmp_path):
    assert "No such file" in refusal(read_yaml, tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").touch()
    assert read_yaml(tmp_path / "empty.yaml") == {}


def test_override_replaces_dotted_fields_and_leaves_the_rest():
    changed = override(Outer(steps=1, name="n"), {"inner.rate": 0.5, "steps": 2})
    assert changed == Outer(steps=2, inner=Inner(rate=0.5), name="n")


def test_override_is_as_strict_as_the_door():
    outer = Outer(steps=1)
    assert "'iner' is not a section of Outer" in refusal(override, outer, {"iner.rate": 1.0})
    assert "'steps' is not a section" in refusal(override, outer, {"steps.rate": 1.0})
    assert refusal(override, outer, {"inner.rat": 1.0}) == "inner.rat: unknown field; did you mean 'rate'?"
    assert refusal(override, outer, {"inner.rate": "x"}).startswith("inner.rate: Input")
    assert "inner.rate must be positive" in refusal(override, outer, {"inner.rate": 0.0})


def test_flags_stand_over_yaml_and_yaml_over_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("inner:\n  rate: 2e-3\nname: yaml\n")
    defaults = {"steps": 1, "inner": Inner(rate=1.0, kind="b"), "name": "default"}
    assert parse(**defaults) == Outer(steps=1, inner=Inner(rate=1.0, kind="b"), name="default")
    # A section of the YAML replaces the fields that it names, not the section.
    assert parse("--config", str(path), **defaults) == Outer(steps=1, inner=Inner(rate=2e-3, kind="b"), name="yaml")
    flagged = parse("--name", "flag", "--config", str(path), "--inner.rate", "0.25", **defaults)
    assert flagged == Outer(steps=1, inner=Inner(rate=0.25, kind="b"), name="flag")
    assert parse("--steps", "7") == Outer(steps=7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stesp: 1", "stesp: unknown field; did you mean 'steps'?"),
        ("inner: {ratte: 1.0}", "inner.ratte: unknown field; did you mean 'rate'?"),
        ("inner: {rate: x}", "inner.rate: Input should be"),
        ("steps: many", "steps: Input should be"),
        ("steps: 2020-01-01", "steps: "),
        ("inner: {rate: 2020-01-01}", "inner."),
    ],
)
def test_a_wrong_field_of_the_yaml_is_refused_by_name(tmp_path, text, says):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert says in refusal(parse, f"--config={path}", steps=1)


@pytest.mark.parametrize("words", [["--stpes", "1"], ["--steps", "x"], []])
def test_a_command_line_that_does_not_fit_exits_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    assert "steps" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--inner.rate", "-1"], ["--layers.0.width", "0"]])
def test_a_flag_out_of_range_is_refused_with_the_path_of_its_field(words):
    with pytest.raises(FieldError) as caught:
        parse("--steps", "1", *words, layers=(Layer(width=1),))
    assert caught.value.owner is Outer
    assert f"--{caught.value.field}" == words[0]
    assert caught.value.problem == f"must be positive, got {caught.value.problem.split()[-1]}"


def test_a_flag_mends_what_the_yaml_leaves_out_of_range_together_with_another_field(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("steps: 1\nlast: 0\n")
    assert parse("--last", "3", f"--config={path}") == Outer(steps=1, last=3)
    assert refusal(parse, f"--config={path}") == "last must be 1 or more, got 0"


def test_a_refusal_knows_the_class_and_the_path_wherever_it_is_built():
    for call, owner, field in [
        (lambda: Inner(rate=-1.0), Inner, "rate"),
        (lambda: from_dict(Outer, {"steps": 1, "inner": {"rate": -1.0}}), Outer, "inner.rate"),
        (lambda: from_dict(Outer, {"steps": 1, "layers": [{"width": 1}, {"width": 0}]}), Outer, "layers.1.width"),
        (lambda: override(Outer(steps=1), {"inner.rate": 0.0}), Outer, "inner.rate"),
    ]:
        with pytest.raises(FieldError) as caught:
            call()
        assert (caught.value.owner, caught.value.field) == (owner, field)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - as Ray sends it


def test_a_flag_is_taken_out_with_its_value():
    assert take_flag(["--a", "1", "--config", "f", "b"], "--config") == (["--a", "1", "b"], "f")
    assert take_flag(["--config=f=g"], "--config") == ([], "f=g")
    assert take_flag(["--configs", "f"], "--config") == (["--configs", "f"], None)
    assert "expected a value" in refusal(take_flag, ["--config"], "--config")


def test_the_hash_names_the_values_alone():
    assert config_hash(Outer(steps=1)) == config_hash(from_dict(Outer, to_dict(Outer(steps=1))))
    assert config_hash(Outer(steps=1)) != config_hash(Outer(steps=1, inner=Inner(rate=2e-4)))
