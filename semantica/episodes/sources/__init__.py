"""The crawl formats that ingest reads: files come in, parts and then pages go out. One module per format.

To add a format, add one module here with a class decorated by `@source("its name")`; docs/guides/add-a-source.md shows how.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from semantica.config.registry import Registry
from semantica.episodes.pages import Source

S = TypeVar("S", bound=Source)

SOURCES: Registry[Source] = Registry("source", __name__)
_LABELLED: set[str] = set()


def source(name: str, *, labels: bool = False) -> Callable[[type[S]], type[S]]:
    """A decorator that registers a Source class, whose __init__ takes no arguments. labels: its pages are label episodes."""

    def register(cls: type[S]) -> type[S]:
        SOURCES.add(name, cls())
        if labels:
            _LABELLED.add(name)
        return cls

    return register


def label_sources() -> list[str]:
    """The names of the sources whose pages are label episodes."""
    return [name for name in SOURCES if name in _LABELLED]
