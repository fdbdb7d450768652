"""The one strict door for configuration: frozen dataclass <-> dict, YAML, command line, Tune override.

Every stage declares its settings as a `@config` dataclass beside the code that uses them. Whatever comes from outside passes
through `from_dict` (YAML and overrides) or `from_args` (command line, tyro); an unknown or mistyped field is an error that
names it. Nothing here knows a stage.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
import tyro
import yaml

from semantica.errors import ConfigError

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """The class as a frozen, keyword-only dataclass that refuses unknown and mistyped fields when built by `from_dict`."""
    cls.__pydantic_config__ = pydantic.ConfigDict(extra="forbid", strict=True)  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def require(holds: bool, field: str, expected: str, got: object) -> None:
    """Raise ConfigError("field must be expected, got got") unless `holds`. For range checks in `__post_init__`."""
    if not holds:
        raise ConfigError(f"{field} must be {expected}, got {got!r}")


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """An instance of the `@config` class from plain values. Raises ConfigError naming each unknown, missing or mistyped field."""
    try:
        text = json.dumps(dict(values))
    except TypeError as error:
        raise ConfigError(f"configuration holds a value that is not plain data: {error}") from error
    try:
        return pydantic.TypeAdapter(cls).validate_json(text)
    except pydantic.ValidationError as error:
        raise ConfigError("; ".join(_explain(cls, item) for item in error.errors())) from None


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


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError when the file is missing, not YAML, or not a mapping."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected a mapping of fields, got {type(values).__name__}")
    return values


def to_yaml(instance: Any) -> str:
    """The resolved configuration as YAML that `--config` takes."""
    return yaml.safe_dump(to_dict(instance), sort_keys=False)


def config_hash(instance: Any) -> str:
    """16 hex digits that name the resolved configuration."""
    return hashlib.sha256(json.dumps(to_dict(instance), sort_keys=True).encode()).hexdigest()[:16]


def from_args(cls: type[T], argv: Sequence[str], *, prog: str, description: str, default: T | None = None) -> T:
    """An instance from command-line words. `--config FILE` (YAML) is read first, flags override it.

    Exits with code 2 after tyro's message when a flag is unknown or mistyped, 0 after --help. Raises ConfigError for the file.
    """
    words, path = _take_config_flag(argv)
    if path is not None:
        base = to_dict(default) if default is not None else {}
        default = from_dict(cls, _merge(base, read_yaml(path)))
    return tyro.cli(
        cls,
        args=words,
        prog=prog,
        description=description + "\n\n--config FILE reads fields from YAML first; flags override them.",
        default=default,
    )


def _take_config_flag(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    words, path = [], None
    rest = iter(argv)
    for word in rest:
        if word == "--config" or word.startswith("--config="):
            value = word.partition("=")[2] or next(rest, "")
            if not value:
                raise ConfigError("--config: expected a YAML file, got nothing")
            path = Path(value)
        else:
            words.append(word)
    return words, path


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
