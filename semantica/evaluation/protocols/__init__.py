"""The registry of protocols: what each asks for, and what it adds to the report. A protocol is one class in a file of this package.

In: the names of --protocol, models and evaluation sets. Out: cells, each with the networks that measure it, and after the
measuring one `Part` of the page per protocol. Nothing outside this package knows the name of a protocol.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from semantica.config import require
from semantica.errors import ConfigError
from semantica.evaluation.outcome import Outcome
from semantica.evaluation.requests import Cell
from semantica.evaluation.sets import EvaluationSet
from semantica.evaluation.settings import EvaluationConfig
from semantica.report.charts import Curve, Histogram
from semantica.report.page import Figure, Table, Value
from semantica.report.paper import PaperRow
from semantica.report.pictures import Gallery, Grid


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one protocol adds to the report. stated: rows of the page's section "Protocol"."""

    summary: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    papers: list[PaperRow] = field(default_factory=list)
    provenance: list[tuple[str, str, str]] = field(default_factory=list)
    stated: Mapping[str, Value] = field(default_factory=dict)


class EvaluationProtocol:
    """One protocol. every_step: of each run all checkpoints that were kept, else the last. needs_classes: sets of one label are
    left out where others have classes. needs_train: training pictures are measured, where --train names them. page: the title of a
    page that the protocol fills alone, "" where it stands beside others.
    """

    every_step = False
    needs_classes = False
    needs_train = False
    page = ""

    def cells(self, base: Cell, settings: EvaluationConfig) -> Iterator[Cell]:
        """What is measured of the model and set of `base`, or only drawn."""
        raise NotImplementedError

    def networks(self, cell: Cell, settings: EvaluationConfig) -> tuple[str, ...]:
        """What measures a cell of this protocol; nothing where its samples are only shown."""
        return (*(settings.extractor or ()), *((settings.perceptual or ()) if cell.is_drawn else ()))

    def part(self, outcome: Outcome) -> Part:
        """What stands in the report."""
        raise NotImplementedError


P = TypeVar("P", bound=type[EvaluationProtocol])
_REGISTRY: dict[str, EvaluationProtocol] = {}


def protocol(name: str) -> Callable[[P], P]:
    """Register the class below under a name of --protocol."""

    def register(cls: P) -> P:
        if name in _REGISTRY and type(_REGISTRY[name]).__qualname__ != cls.__qualname__:
            raise ConfigError(f"protocol: two protocols are called {name!r}; rename one")
        _REGISTRY[name] = cls()
        return cls

    return register


def known() -> dict[str, EvaluationProtocol]:
    """Every protocol by name, after each file of this package has registered its own."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    return _REGISTRY


def chosen(settings: EvaluationConfig) -> dict[str, EvaluationProtocol]:
    """The protocols that are asked for, in that order. Raises ConfigError for an unknown name, and for two pages in one."""
    protocols = known()
    for name in settings.protocol:
        require(name in protocols, "protocol", f"of {', '.join(sorted(protocols))}", name, of=EvaluationConfig)
        is_alone = not protocols[name].page or len(settings.protocol) == 1
        require(is_alone, "protocol", f"{name} alone, which fills a page", settings.protocol, of=EvaluationConfig)
    return {name: protocols[name] for name in settings.protocol}


def cells_of(
    settings: EvaluationConfig, models: Sequence[str], last: Sequence[str], data: Sequence[str], passed_over: Collection[str] = ()
) -> dict[Cell, tuple[str, ...]]:
    """Every cell that the protocols ask for, in a fixed order, with the networks that measure it.

    last: the last model of each run. passed_over: sets that are left out where a protocol needs classes.
    """
    cells: dict[Cell, tuple[str, ...]] = {}
    for one in chosen(settings).values():
        for model in models if one.every_step else last:
            for name in (n for n in data if not (one.needs_classes and n in passed_over)):
                for cell in one.cells(Cell(model, name, "pictures"), settings):
                    both = (*cells.get(cell, ()), *one.networks(cell, settings))
                    cells[cell] = tuple(dict.fromkeys(both))
    return cells


def without_classes(settings: EvaluationConfig, data: Collection[EvaluationSet]) -> list[str]:
    """The names of sets of one label, where classes are needed and other sets have some (ImageNet beside LSUN's)."""
    several = {one.name: len(one.labels) > 1 for one in data}
    needed = any(one.needs_classes for one in chosen(settings).values())
    return [name for name in several if not several[name]] if needed and any(several.values()) else []
