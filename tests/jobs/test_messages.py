"""A message names the flag that its command takes, and the path that its YAML takes."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import typing
from pathlib import Path
from typing import Annotated, Any

import pytest
import tyro
import yaml

from semantica.config import config, from_args, require
from semantica.errors import ConfigError, FieldError
from semantica.jobs.cli import COMMANDS
from semantica.jobs.flags import flags_of_paths, placed, setting, settings
from semantica.presets import preset

ROOT = Path(__file__).parents[2]
# Out of range for some field of each type. A field that takes them all has no range.
WRONG = {int: (-1, 0, -(10**9), 10**12), float: (-1.0, 0.0, 7.5, -1e9, 1e12), str: ("", " a b ", "no such")}


@config
class Inner:
    rate: float = 1.0
    widths: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        require(self.rate > 0, "rate", "positive", self.rate)


@config
class Section:
    inner: Inner = Inner()
    num_steps: int = 1
    is_fast: bool = False

    def __post_init__(self) -> None:
        require(self.num_steps > 0, "num_steps", "positive", self.num_steps)


@config
class Job:
    section: Annotated[Section, tyro.conf.arg(name="")] = Section()
    other: Inner = Inner()
    parts: tuple[Inner, ...] = ()


def test_a_setting_has_a_flag_without_unnamed_sections_and_the_whole_path():
    flags = {one.path: one.flag for one in settings(Job)}
    assert flags["section.num_steps"] == "--num-steps"
    assert flags["section.inner.rate"] == "--inner.rate"
    assert flags["other.rate"] == "--other.rate"
    assert setting(Job, "parts.1.rate").flag == "--parts.1.rate"
    assert setting(Job, "section.rate") is None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FieldError(Job, "section.num_steps", "must be 1"), "--num-steps (section.num_steps in YAML) must be 1"),
        (FieldError(Section, "inner.rate", "must be 1"), "--inner.rate (section.inner.rate in YAML) must be 1"),
        (FieldError(None, "section.num_steps", "must be 1"), "--num-steps (section.num_steps in YAML) must be 1"),
        (FieldError(int, "rate", "must be 1"), "rate must be 1"),
        (ConfigError("section.num_steps must divide 4"), "--num-steps (section.num_steps in YAML) must divide 4"),
        (ConfigError("set other.rate, not model.safetensors"), "set --other.rate (other.rate in YAML), not model.safetensors"),
        (ConfigError("inner.rate is 1"), "--inner.rate (section.inner.rate in YAML) is 1"),
    ],
)
def test_a_message_names_flag_and_path(error, message):
    assert placed(error, Job) == message


def test_a_class_that_sits_in_two_places_is_named_in_both_when_the_place_is_not_known():
    both = "--inner.rate (section.inner.rate in YAML) or --other.rate (other.rate in YAML)"
    assert placed(FieldError(Inner, "rate", "must be 1"), Job).startswith(both)


def test_a_flag_may_be_spelled_as_the_path():
    words = [
        "--section.num-steps",
        "3",
        "--section.no-is-fast",
        "--section.inner.rate=2",
        "--other.rate",
        "--section.x",
        "--inner.rate",
    ]
    expected = ["--num-steps", "3", "--no-is-fast", "--inner.rate=2", "--other.rate", "--section.x", "--inner.rate"]
    assert flags_of_paths(Job, words) == expected


def command(name: str) -> Any:
    return importlib.import_module(f"semantica.jobs.{name.replace('-', '_')}").COMMAND


def fields_of(instance: Any, path: str = "") -> typing.Iterator[tuple[str, Any, Any]]:
    """(path, type, value) of each plain field of a configuration, also in tuples of sections."""
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        here = f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{here}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for index, part in enumerate(value):
                yield from fields_of(part, f"{here}.{index}.")
        else:
            yield here, hints[field.name], value


def refusals(name: str) -> dict[str, str]:
    """Path of a field -> the message when a flag gives it a value that a range check refuses."""
    job, found = command(name), {}
    defaults = job.sections(preset(job.default_preset))
    required = [f.name for f in dataclasses.fields(job.settings) if f.default is dataclasses.MISSING and f.name not in defaults]
    hints = typing.get_type_hints(job.settings)
    texts = {
        n: next((one for one in typing.get_args(hints[n]) if isinstance(one, str)), "x") for n in required
    }  # a Literal's first
    words = [word for flag, text in texts.items() for word in (f"--{flag}", text)]
    base = from_args(job.settings, words, prog="", description="", defaults=defaults)
    for path, hint, _ in fields_of(base):
        kinds = [kind for kind in (hint, *typing.get_args(hint)) if kind in WRONG]
        for wrong in WRONG[kinds[0]] if kinds else ():
            flag = setting(job.settings, path)
            assert flag is not None, path
            try:
                with_one_changed(base, path.split("."), (wrong,) if typing.get_origin(hint) is tuple else wrong)
            except FieldError as error:
                found.setdefault(path, placed(error.under(job.settings, *path.split(".")[:-1]), job.settings))
            except (TypeError, ValueError):
                continue
    return found


def with_one_changed(instance: Any, path: list[str], value: Any) -> None:
    """Raise what the class of the field says to the value."""
    for part in path[:-1]:
        instance = instance[int(part)] if part.isdigit() else getattr(instance, part)
    dataclasses.replace(instance, **{path[-1]: value})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_range_check_of_a_command_names_a_flag_and_a_path_that_it_takes(name, tmp_path):
    job = command(name)
    known = {one.path: one.flag for one in settings(job.settings)}
    messages = refusals(name)
    assert len(messages) >= {"doctor": 3, "release": 2}.get(name, 8)
    for path, message in messages.items():
        named = re.match(r"(--\S+) \((\S+) in YAML\) must be ", message)
        assert named, message
        plain = re.sub(r"\.\d+(?=\.)", "", named[2])
        assert plain in known
        assert re.sub(r"\.\d+(?=\.)", "", named[1]) == known[plain]
        section = path.rpartition(".")[0]
        assert named[2].startswith(section), (path, message)


@pytest.mark.parametrize(
    ("name", "words", "document", "message"),
    [
        (
            "train", ["--optimizer.learning-rate", "-1"], {},
            "--optimizer.learning-rate (train.optimizer.learning_rate in YAML) must be positive, got -1.0",
        ),
        ("train", ["--train.num-steps", "0"], {}, "--num-steps (train.num_steps in YAML) must be positive, got 0"),
        (
            "train", [], {"train": {"compute": {"parallel": "hsdp"}}},
            "--compute.shard-workers (train.compute.shard_workers in YAML) must be 2 or more with parallel hsdp, got None",
        ),
        ("evaluate", ["--num", "1"], {}, "--num (evaluation.num in YAML) must be 2 or more: one sample has no covariance, got 1"),
        ("evaluate", ["--similarity", "7"], {},
         "--similarity (evaluation.similarity in YAML) must be a cosine, in [-1, 1], got 7.0"),
        ("pipeline", ["--generate.seed", "1", "--cluster.num-workers", "0"], {},
         "--cluster.num-workers (runtime.cluster.num_workers in YAML) must be 1 or more, got 0"),
        ("sweep", ["--measure.num", "1"], {}, "--measure.num (sweep.measure.num in YAML) must be 2 or more, got 1"),
        ("pipeline", [], {"pipeline": {"train": {"ema": {"decay": 1.0}}}},
         "--train.ema.decay (pipeline.train.ema.decay in YAML) must be in [0, 1), got 1.0"),
    ],
)  # fmt: skip
def test_a_command_refuses_a_wrong_value_by_flag_and_path(name, words, document, message, tmp_path, capsys):
    job = command(name)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document))
    given = {"root": "r", "out": str(tmp_path), "encodings": "e", "selection": "s", "checkpoint": "c", "data": "d"}
    known = [f.name for f in dataclasses.fields(job.settings) if f.default is dataclasses.MISSING]
    required = [word for n in known if n in given for word in (f"--{n}", given[n])]
    main = importlib.import_module(f"semantica.jobs.{name}").main
    assert main([*required, "--config", str(tmp_path / "job.yaml"), *words]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def raised_texts() -> list[tuple[str, str]]:
    """(file, text) of each piece of text in a `raise` of the package."""
    texts = []
    for path in sorted((ROOT / "semantica").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise):
                parts = [part for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
                texts += [(f"{path.relative_to(ROOT)}:{part.lineno}", part.value) for part in parts]
    return texts


def test_every_flag_and_every_setting_that_an_error_names_is_one_of_a_command():
    every = [one for name in COMMANDS for one in settings(command(name).settings)]
    flags = {one.flag for one in every} | {"--preset", "--config"}
    flags |= {"--" + re.sub(r"([\w-]+)$", r"no-\1", one.flag[2:]) for one in every if one.kind is bool}
    paths = {one.path for one in every} | {one.flag[2:].replace("-", "_") for one in every}
    sections = {path.split(".")[0] for path in paths if "." in path}
    found = raised_texts()
    assert len(found) > 300
    unknown = []
    for where, text in found:
        unknown += [(where, flag) for flag in re.findall(r"--[a-z][\w.-]*\w", text) if flag not in flags]
        names = re.findall(r"(?<![\w./-])([a-z]\w*(?:\.[a-z]\w*)+)", text)
        unknown += [(where, name) for name in names if name.split(".")[0] in sections and name not in paths]
    assert unknown == []
