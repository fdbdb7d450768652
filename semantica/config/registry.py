"""Named parts that are registered beside their code: sources, samplers, protocols, extractors.

A part is added by one file: the module that defines it calls the registry's decorator, and the registry imports every module of
its package at the first look-up. Nothing else lists the names.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from semantica.errors import ConfigError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """The parts of one kind by name, in the order of their registration.

    kind: what messages call a part. package: the package whose modules register the parts, imported at the first look-up.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._parts: dict[str, T] = {}
        self._is_complete = False

    def add(self, name: str, part: T) -> T:
        """Register a part. Raises ValueError when the name is taken by another one."""
        if self._parts.setdefault(name, part) is not part:
            raise ValueError(f"the {self.kind} {name!r} is registered twice")
        return part

    def register(self, name: str) -> Callable[[T], T]:
        """The decorator that registers what stands below it."""
        return lambda part: self.add(name, part)

    def check(self, name: str) -> None:
        """Raise ConfigError when there is no part of this name; the message says which there are."""
        if name not in self:
            close = difflib.get_close_matches(name, self, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(self)}"
            raise ConfigError(f"{self.kind} {name!r} is unknown; {hint}")

    def __getitem__(self, name: str) -> T:
        return self._complete()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._complete())

    def __len__(self) -> int:
        return len(self._complete())

    def _complete(self) -> dict[str, T]:
        if not self._is_complete:
            self._is_complete = True  # first: a module of the package may look a part up while it is imported
            module = importlib.import_module(self.package)
            for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
                importlib.import_module(f"{self.package}.{info.name}")
        return self._parts
