"""What of a configuration decides a result, and how it differs from what an earlier run recorded.

In: a `@config` instance, whose fields say beside themselves whether they are `free`. Out: the part that decides, and every field in
which it differs from the plain values that an earlier run, perhaps of an older or a newer version, wrote down.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

from semantica.config.door import BEFORE, FREE, from_dict, to_dict

T = TypeVar("T")


def plain(value: Any) -> Any:
    """`value` as JSON gives it back; `@config` instances in it become dicts."""
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def identity(instance: Any) -> dict[str, Any]:
    """`to_dict` without the fields that are `free`: equal for two configurations that make the same."""
    return typing.cast("dict[str, Any]", _without(plain(instance), free_fields(instance)))


def free_fields(instance: Any, prefix: str = "") -> list[str]:
    """The dotted names of all fields of a `@config` instance, and of the sections in it, that are `free`."""
    names: list[str] = []
    for name, value, field in _children(instance):
        path = f"{prefix}{name}"
        names += [path] if field is not None and field.metadata.get(FREE) else free_fields(value, f"{path}.")
    return names


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field whose value is another one than an earlier run recorded. is_unknown: this version has no such field."""

    path: str
    old: Any
    new: Any
    is_unknown: bool = False

    def __str__(self) -> str:
        if self.is_unknown:
            return f"{self.path}: was {_short(self.old)}, and this version has no such field"
        return f"{self.path}: was {_short(self.old)}, now {_short(self.new)}"


def differences(old: Mapping[str, Any], new: Any, *, known_free: Collection[str] = ()) -> list[Difference]:
    """Every field in which `new`, a `@config` instance or a mapping that may hold some, makes something else than `old`.

    old: the plain values that an earlier run recorded. A field that is missing in them counts as `added(..., before=...)` says, or
    as its default. known_free: the names of the fields that the earlier run called free. A field that this version does not know
    is a difference unless it is one of these.
    """
    return list(_differences(old, new, "", frozenset(known_free)))


def from_record(cls: type[T], values: Mapping[str, Any]) -> T:
    """`from_dict` for what a run has recorded, of this version or an older one, whose missing fields count as in `differences`."""
    return from_dict(cls, _completed(cls, values))


def _children(value: Any) -> Iterator[tuple[str, Any, dataclasses.Field[Any] | None]]:
    """(name, value, field) of what lies directly in a `@config` instance, a mapping or a sequence; nothing in a plain value."""
    if dataclasses.is_dataclass(value):
        yield from ((field.name, getattr(value, field.name), field) for field in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        yield from ((str(name), one, None) for name, one in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((str(index), one, None) for index, one in enumerate(value))


def _differences(old: Any, new: Any, path: str, known_free: frozenset[str]) -> Iterator[Difference]:
    if not isinstance(old, Mapping) or not (dataclasses.is_dataclass(new) or isinstance(new, Mapping)):
        yield from _differences_of_values(old, new, path, known_free)
        return
    names = set()
    for name, value, field in _children(new):
        names.add(name)
        if field is None:
            earlier = old.get(name)
        elif field.metadata.get(FREE):
            continue
        else:
            earlier = old[name] if name in old else plain(_before(field))
        yield from _differences(earlier, value, _joined(path, name), known_free)
    for name in old:
        there = _joined(path, name)
        if name not in names and there not in known_free and (dataclasses.is_dataclass(new) or old[name] is not None):
            yield Difference(there, old[name], None, is_unknown=dataclasses.is_dataclass(new))


def _differences_of_values(old: Any, new: Any, path: str, known_free: frozenset[str]) -> Iterator[Difference]:
    listed = isinstance(old, list) and isinstance(new, (list, tuple)) and len(old) == len(new)
    if listed and any(dataclasses.is_dataclass(one) for one in new):
        for index, (earlier, one) in enumerate(zip(old, new, strict=True)):
            yield from _differences(earlier, one, _joined(path, str(index)), known_free)
    elif old != plain(new):
        yield Difference(path, old, plain(new))


def _before(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.metadata.get(BEFORE, field.default_factory())
    return field.metadata.get(BEFORE, None if field.default is dataclasses.MISSING else field.default)


def _without(values: Any, paths: Collection[str], prefix: str = "") -> Any:
    if isinstance(values, list):
        return [_without(value, paths, f"{prefix}{index}.") for index, value in enumerate(values)]
    if not isinstance(values, dict):
        return values
    kept = {name: value for name, value in values.items() if f"{prefix}{name}" not in paths}
    return {name: _without(value, paths, f"{prefix}{name}.") for name, value in kept.items()}


def _completed(hint: Any, values: Any) -> Any:
    """`values` with the fields that an older version did not know, where these have a value of their own for that."""
    cls = next((one for one in (hint, *typing.get_args(hint)) if isinstance(one, type) and dataclasses.is_dataclass(one)), None)
    if cls is not None and isinstance(values, list):
        return [_completed(cls, value) for value in values]
    if cls is None or not isinstance(values, Mapping):
        return values
    hints = typing.get_type_hints(cls)
    missing = {f.name: plain(f.metadata[BEFORE]) for f in dataclasses.fields(cls) if BEFORE in f.metadata}
    return missing | {name: _completed(hints.get(name), value) for name, value in values.items()}


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
