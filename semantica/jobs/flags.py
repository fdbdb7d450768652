"""Where a setting sits in a command: its flag and its YAML path, for messages, for `--help`, and for words that use the other name.

In: the `@config` class of a command. A field whose section is `Annotated[..., tyro.conf.arg(name="")]` has a flag without that
section's name (`--num-steps`), while YAML always spells the whole path (`train.num_steps`).
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from semantica.errors import ConfigError, FieldError

_NAME = re.compile(r"(?<![\w./-])[a-z]\w*(?:\.\w+)+")  # a dotted name in a message


@dataclass(frozen=True)
class Setting:
    """A field, or a section of fields, of a command. kind: its type, without None and Annotated."""

    path: str
    flag: str
    kind: Any


def settings(cls: type) -> Iterator[Setting]:
    """Every field and section of a command's class, in its order. Elements of a tuple of sections stand once, without number."""
    yield from _settings(cls, (), ())


def _settings(cls: type, path: tuple[str, ...], flag: tuple[str, ...]) -> Iterator[Setting]:
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        here = (*path, field.name)
        flags = flag if _is_unnamed(hint) else (*flag, field.name.replace("_", "-"))
        yield Setting(".".join(here), "--" + ".".join(flags), _plain(hint))
        if (section := _section(hint)) is not None:
            yield from _settings(section, here, flags)


def setting(cls: type, path: str) -> Setting | None:
    """The setting at a dotted path, with the numbers of elements (`stages.0.channels`); None when the command has none there."""
    names = re.sub(r"\.\d+(?=\.|$)", "", path)
    for one in settings(cls):
        if one.path == names:
            if names == path:
                return one
            depth = len(names.split(".")) - len(one.flag.split("."))  # sections without a name
            return Setting(path, "--" + ".".join(path.replace("_", "-").split(".")[depth:]), one.kind)
    return None


def placed(error: ConfigError, cls: type) -> str:
    """The message of an error with the flag and the YAML path of each setting that it names, as the command of `cls` takes them."""
    if not isinstance(error, FieldError):
        return _NAME.sub(lambda match: _spelled(cls, match[0]) or match[0], str(error))
    places = [""] if error.owner in (None, cls) else [f"{one.path}." for one in settings(cls) if _section(one.kind) is error.owner]
    found = [one for place in (*places, "") if (one := setting(cls, f"{place}{error.field}")) is not None]
    names = " or ".join(dict.fromkeys(f"{one.flag} ({one.path} in YAML)" for one in found)) or error.field
    return f"{names} {_NAME.sub(lambda match: _spelled(cls, match[0]) or match[0], error.problem)}"


def _spelled(cls: type, name: str) -> str | None:
    known = setting(cls, name) or next((one for one in settings(cls) if one.flag == _flag(name)), None)
    return None if known is None or _section(known.kind) is not None else f"{known.flag} ({known.path} in YAML)"


def flags_of_paths(cls: type, words: list[str]) -> list[str]:
    """The words with each flag that is spelled as its YAML path (`--train.num-steps`) replaced by the flag (`--num-steps`)."""
    known = {one.flag for one in settings(cls)}
    return [_flag_of_path(cls, known, word) if word.startswith("--") else word for word in words]


def _flag_of_path(cls: type, known: set[str], word: str) -> str:
    name, equals, value = word[2:].partition("=")
    path = name.replace("-", "_")
    *sections, leaf = path.split(".")
    no = leaf.startswith("no_") and setting(cls, path) is None
    found = setting(cls, ".".join([*sections, leaf.removeprefix("no_") if no else leaf]))
    if found is None or _flag(path) in known:
        return word
    *front, last = found.flag[2:].split(".")
    return "--" + ".".join([*front, f"no-{last}" if no else last]) + equals + value


def _flag(dotted: str) -> str:
    return "--" + dotted.replace("_", "-")


def _is_unnamed(hint: Any) -> bool:
    return any(getattr(note, "name", None) == "" for note in getattr(hint, "__metadata__", ()))


def _plain(hint: Any) -> Any:
    """A type without Annotated and without None."""
    if hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        return parts[0] if len(parts) == 1 else hint
    return hint


def _section(hint: Any) -> type | None:
    """The `@config` class of a section, or of the elements of a tuple of sections; None for a field."""
    kind = _plain(hint)
    if typing.get_origin(kind) is tuple:
        kind = _plain(typing.get_args(kind)[0])
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None
