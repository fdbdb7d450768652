"""The one strict door for configuration: frozen dataclass <-> dict, YAML, command line, Tune override.

Every stage declares its settings as a `@config` dataclass beside the code that uses them. Whatever comes from outside passes
through `from_dict` (YAML and overrides) or `from_args` (command line, tyro); an unknown or mistyped field is an error that
names it. Nothing here knows a stage.

A field decides what a stage makes, unless its default is written `free(...)`: then it may change when the stage runs again in
the same folder (`identity.py`).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
import tyro
import yaml

from semantica.errors import ConfigError, FieldError

T = TypeVar("T")
_CHECKS = ContextVar("range checks", default=True)  # off while a command line is put together
FREE, BEFORE = "free", "before"  # keys of a field's metadata


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """The class as a frozen, keyword-only dataclass that refuses unknown and mistyped fields when built by `from_dict`.

    Its `__post_init__` holds range checks, each a `require`, whose errors then know the class.
    """
    cls.__pydantic_config__ = pydantic.ConfigDict(extra="forbid", strict=True)  # type: ignore[attr-defined]
    if "__post_init__" in vars(cls):
        cls.__post_init__ = _checked(vars(cls)["__post_init__"])  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def free(default: T) -> T:
    """The default of a field that does not change what is made, or only its rounding: it may change when work resumes."""
    return dataclasses.field(default=default, metadata={FREE: True})


def added(default: T, *, before: T) -> T:
    """The default of a field that older versions did not have. before: the value that their code behaved as, if not `default`."""
    return dataclasses.field(default=default, metadata={BEFORE: before})


def _checked(check: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(check)
    def __post_init__(self: Any) -> None:
        if not _CHECKS.get():
            return
        try:
            check(self)
        except FieldError as error:
            raise error.under(type(self)) from None

    return __post_init__


def require(holds: bool, field: str, expected: str, got: object, *, of: type | None = None) -> None:
    """Raise FieldError("field must be expected, got got") unless `holds`. For range checks in `__post_init__`.

    field: as the class declares it, without the sections around it. of: the class, for a check that stands elsewhere.
    """
    if not holds:
        raise FieldError(of, field, f"must be {expected}, got {got!r}")


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """An instance of the `@config` class from plain values. Raises ConfigError naming each unknown, missing or mistyped field."""
    try:
        text = json.dumps(dict(values))
    except TypeError as error:
        raise ConfigError(f"configuration holds a value that is not plain data: {error}") from error
    try:
        return pydantic.TypeAdapter(cls).validate_json(text)
    except pydantic.ValidationError as error:
        refusals = [_refusal(cls, item) for item in error.errors()]
        raise refusals[0] if len(refusals) == 1 else ConfigError("; ".join(map(str, refusals))) from None


def _refusal(cls: type, item: Any) -> ConfigError:
    error = item.get("ctx", {}).get("error")
    if isinstance(error, FieldError):  # a range check: it knows its field, pydantic knows the way there
        return error.under(cls, *(part for part in item["loc"] if isinstance(part, (str, int))))
    return ConfigError(_explain(cls, item))


def _explain(cls: type, item: Any) -> str:
    path = [part for part in item["loc"] if isinstance(part, (str, int))]
    name = ".".join(map(str, path)) or cls.__name__
    if item["type"] == "unexpected_keyword_argument":
        known = _field_names(cls, path[:-1])
        close = difflib.get_close_matches(str(path[-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(known)}"
        return f"{name}: unknown field; {hint}"
    if item["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{name}: missing"
    message = re.sub(r"^Value error, ", "", item["msg"])
    return f"{name}: {message}" if message.startswith("Input") else message + f" (in {name})"


def _field_names(cls: type, path: Sequence[str | int]) -> list[str]:
    hints = pydantic.TypeAdapter(cls).json_schema()
    node: Any = hints
    for part in (*path, None):
        while "$ref" in node:
            node = hints["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        if part is None:
            return list(node.get("properties", {}))
        node = node.get("properties", {}).get(part) or node.get("items", {})
    return []


def to_dict(instance: Any) -> dict[str, Any]:
    """Plain JSON-able values of a `@config` instance; `from_dict(type(c), to_dict(c)) == c`."""
    plain: dict[str, Any] = pydantic.TypeAdapter(type(instance)).dump_python(instance, mode="json")
    return plain


def override(instance: T, changes: Mapping[str, Any]) -> T:
    """A copy with dotted fields replaced, e.g. {"train.learning_rate": 2e-4}; as strict as `from_dict`."""
    values = to_dict(instance)
    for dotted, value in changes.items():
        node = values
        *parents, leaf = dotted.split(".")
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                raise ConfigError(f"{dotted}: unknown field; {parent!r} is not a section of {type(instance).__name__}")
            node = node[parent]
        node[leaf] = value
    return from_dict(type(instance), values)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number, as YAML 1.2 does (PyYAML follows 1.1, where it is a string)."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes a text which `_Loader` would read as a number, such as the revision "12e4"."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError when the file is missing, not YAML, or not a mapping."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected a mapping of fields, got {type(values).__name__}")
    if odd := [name for name in values if not isinstance(name, str)]:
        raise ConfigError(f"--config {path}: expected names of fields, got {odd[0]!r}")
    return values


def to_yaml(instance: Any) -> str:
    """The resolved configuration as YAML that `--config` takes."""
    return yaml.dump(to_dict(instance), Dumper=_Dumper, sort_keys=False)


def config_hash(instance: Any) -> str:
    """16 hex digits that name the resolved configuration."""
    return hashlib.sha256(json.dumps(to_dict(instance), sort_keys=True).encode()).hexdigest()[:16]


def from_args(cls: type[T], argv: Sequence[str], *, prog: str, description: str, defaults: Mapping[str, Any] | None = None) -> T:
    """An instance of the `@config` class from command-line words over `--config FILE` (YAML) over `defaults`.

    Exits with code 2 after tyro's message when a flag is unknown or mistyped, 0 after --help. Raises ConfigError for the file, and
    FieldError for a value that a range check refuses.
    """
    words, path = take_flag(argv, "--config")
    values = dict(defaults or {})
    if path is not None:
        values = _over_defaults(cls, read_yaml(Path(path)), values)
    default = object.__new__(cls)  # not built, since fields may be missing until the flags are read
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        own = tyro.MISSING if field.default is dataclasses.MISSING else field.default
        object.__setattr__(default, field.name, values.get(field.name, own))
    with _without_checks():  # they run below, where the path of each field is known
        built = tyro.cli(
            cls,
            args=words,
            prog=prog,
            description=description + "\n\n--config FILE reads fields from YAML first; flags override them.",
            default=default,
        )
    _check(built)
    return built


@contextmanager
def _without_checks() -> Iterator[None]:
    token = _CHECKS.set(False)
    try:
        yield
    finally:
        _CHECKS.reset(token)


def _check(built: Any) -> None:
    """Run the range checks of a configuration and of its sections, innermost first. Raises FieldError."""
    for field in dataclasses.fields(built):
        value = getattr(built, field.name)
        parts = [((field.name, index), part) for index, part in enumerate(value)] if isinstance(value, tuple) else []
        for path, part in [((field.name,), value), *parts]:
            if dataclasses.is_dataclass(part):
                try:
                    _check(part)
                except FieldError as error:
                    raise error.under(type(built), *path) from None
    if hasattr(built, "__post_init__"):
        built.__post_init__()


def take_flag(argv: Sequence[str], flag: str) -> tuple[list[str], str | None]:
    """(the other words, the value of `flag` or None). For flags that are read before the others."""
    words, value = [], None
    rest = iter(argv)
    for word in rest:
        if word == flag or word.startswith(f"{flag}="):
            value = word.partition("=")[2] or next(rest, "")
            if not value:
                raise ConfigError(f"{flag}: expected a value, got nothing")
        else:
            words.append(word)
    return words, value


def _over_defaults(cls: type, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`defaults` with the YAML's fields over them, each validated alone, since required fields may still come as flags."""
    hints = typing.get_type_hints(cls)
    values = dict(defaults)
    for name, value in given.items():
        if name not in hints:
            close = difflib.get_close_matches(name, hints, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(hints)}"
            raise ConfigError(f"{name}: unknown field; {hint}")
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            base = to_dict(values[name]) if name in values else {}
            try:
                values[name] = from_dict(hints[name], _merge(base, value))
            except FieldError as error:
                raise error.under(cls, name) from None
            except ConfigError as error:
                raise ConfigError(f"{name}.{error}") from None
        else:
            try:
                values[name] = pydantic.TypeAdapter(hints[name]).validate_json(json.dumps(value), strict=True)
            except pydantic.ValidationError as error:
                raise ConfigError(f"{name}: {error.errors()[0]['msg']}") from None
            except TypeError as error:  # a date, say
                raise ConfigError(f"{name}: not plain data: {error}") from None
    return values


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in top.items():
        old = merged.get(name)
        merged[name] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def fail(error: Exception) -> int:
    """Print a user's error as one line on stderr; the exit code to end with."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
