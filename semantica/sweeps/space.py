"""What a sweep varies: patching, learning rate, band, and encoder × conditioning (Fig. 2 of the paper).

In: lists of values, or ranges for a search that draws. Out: for every trial its settings, by flat names that people sort and plot
by, and its configuration. `semantica.config.override` makes the configuration, so an unknown or mistyped field is an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from semantica.config import config, override, require, to_dict
from semantica.denoiser.configs import ConditioningKind, shapes
from semantica.errors import ConfigError
from semantica.pairs.selection import BandConfig
from semantica.training.recipe import TrainConfig

Setting: TypeAlias = str | float
Settings: TypeAlias = dict[str, Setting]
Drawn: TypeAlias = dict[str, Setting]
SETTINGS = ("encoder", "conditioning", "patching", "learning_rate", "band_low", "band_high")
_RANGES = ("learning_rate_range", "band_low_range", "band_high_range")


@config
class SpaceConfig:
    """The values to try; an empty list keeps the preset's value. The encoders are those of --encodings.

    band: (low, high) of each band. With random and optuna, a range replaces the list of the same name. The learning rate is drawn
    by its logarithm; the two sides of the band are drawn separately.
    """

    patching: tuple[Literal["2x2", "none"], ...] = ("2x2", "none")
    learning_rate: tuple[float, ...] = ()
    band: tuple[tuple[float, float], ...] = ()
    conditioning: tuple[ConditioningKind, ...] = ()
    learning_rate_range: tuple[float, float] | None = None
    band_low_range: tuple[float, float] | None = None
    band_high_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("patching", "learning_rate", "band", "conditioning"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), name, "all different", values)
        require(all(rate > 0 for rate in self.learning_rate), "learning_rate", "positive", self.learning_rate)
        for low, high in self.band:
            require(-1 <= low < high <= 1, "band", "-1 <= low < high <= 1", (low, high))
        for name in _RANGES:
            span = getattr(self, name)
            require(span is None or span[0] < span[1], name, "low < high", span)
        rate = self.learning_rate_range
        require(rate is None or rate[0] > 0, "learning_rate_range", "positive", rate)
        sides = [side for side in (self.band_low_range, self.band_high_range) if side is not None]
        require(len(sides) != 1, "band_low_range", "given with band_high_range, or neither", sides)
        if self.band_low_range and self.band_high_range:
            inside = self.band_low_range[0] >= -1 and self.band_high_range[1] <= 1
            apart = self.band_low_range[1] < self.band_high_range[0]
            require(inside and apart, "band_high_range", "in [-1, 1] and above band_low_range", sides)

    @property
    def bands(self) -> tuple[tuple[float, float], ...]:
        """The listed bands; none when ranges replace the list."""
        return () if self.band_low_range else self.band


@config
class Swept:
    """The configurations that a trial changes, as the preset and the command line give them."""

    train: TrainConfig
    band: BandConfig


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Setting, ...]


@dataclass(frozen=True)
class Span:
    """Any number from low to high; `log`: drawn by its logarithm."""

    low: float
    high: float
    log: bool = False


Dimension: TypeAlias = Choice | Span


def dimensions(space: SpaceConfig, encoders: Sequence[str]) -> dict[str, Dimension]:
    """The dimensions of the search by name, in a fixed order. A listed band is one choice, named "LOW to HIGH"."""
    searched: dict[str, Dimension] = {}
    if len(encoders) > 1:
        searched["encoder"] = Choice(tuple(encoders))
    if space.conditioning:
        searched["conditioning"] = Choice(space.conditioning)
    if space.patching:
        searched["patching"] = Choice(space.patching)
    if space.learning_rate_range:
        searched["learning_rate"] = Span(*space.learning_rate_range, log=True)
    elif space.learning_rate:
        searched["learning_rate"] = Choice(space.learning_rate)
    if space.bands:
        searched["band"] = Choice(tuple(band_name(*band) for band in space.bands))
    if space.band_low_range and space.band_high_range:
        searched["band_low"], searched["band_high"] = Span(*space.band_low_range), Span(*space.band_high_range)
    return searched


def band_name(low: float | int, high: float | int) -> str:
    """The name of a band in a list of choices."""
    return f"{low:g} to {high:g}"


def grid(space: SpaceConfig, encoders: Sequence[str]) -> list[Drawn]:
    """Every combination of the listed values, in a fixed order. Raises ConfigError for a range, which has no list."""
    searched = dimensions(space, encoders)
    if ranges := [name for name, dimension in searched.items() if isinstance(dimension, Span)]:
        raise ConfigError(f"space.{ranges[0]}_range: a grid needs a list of values, got a range; give --search random or optuna")
    return combinations(space, encoders)


def combinations(space: SpaceConfig, encoders: Sequence[str]) -> list[Drawn]:
    """Every combination of the listed values, in a fixed order, with the lowest value of each range."""
    searched = dimensions(space, encoders)
    values = [dimension.values if isinstance(dimension, Choice) else (dimension.low,) for dimension in searched.values()]
    return [dict(zip(searched, combination, strict=True)) for combination in itertools.product(*values)]


def settings_of(drawn: Mapping[str, Setting], space: SpaceConfig, swept: Swept, encoders: Sequence[str]) -> Settings:
    """All of SETTINGS: the drawn values over the preset's values."""
    px = swept.train.denoiser.patch_px
    settings: Settings = {
        "encoder": encoders[0],
        "conditioning": swept.train.denoiser.conditioning,
        "patching": "none" if px == 1 else f"{px}x{px}",
        "learning_rate": swept.train.optimizer.learning_rate,
        "band_low": swept.band.low,
        "band_high": swept.band.high,
    }
    values = dict(drawn)
    if "band" in values:
        named = {band_name(*band): band for band in space.band}
        settings["band_low"], settings["band_high"] = named[str(values.pop("band"))]
    return settings | values


def trial_config(swept: Swept, settings: Mapping[str, Setting], encoder: Mapping[str, Any]) -> Swept:
    """The configuration of a trial. encoder: the identity of its encodings' encoder, which gives the denoiser's input sizes."""
    changes: dict[str, Any] = {
        "train.optimizer.learning_rate": settings["learning_rate"],
        "train.denoiser.conditioning": settings["conditioning"],
        "band.low": settings["band_low"],
        "band.high": settings["band_high"],
    }
    changes |= {f"train.denoiser.{name}": encoder[name] for name in ("token_dim", "num_tokens", "pooled_dim")}
    own = swept.train.denoiser
    if settings["patching"] in ("2x2", "none"):
        patched, unpatched = shapes(own)
        wanted = to_dict(unpatched if settings["patching"] == "none" else patched)
        changes |= {f"train.denoiser.{name}": wanted[name] for name in ("patch_px", "stages")}
    return override(swept, changes)


def trial_name(index: int, settings: Mapping[str, Setting]) -> str:
    """The readable name of a trial and of its folder, the same at every start."""
    rate, low, high = (f"{settings[name]:.4g}" for name in ("learning_rate", "band_low", "band_high"))
    return f"{index:03d}-{settings['encoder']}-{settings['conditioning']}-{settings['patching']}-lr{rate}-band{low}_{high}"
