"""What `python -m tune.sweep` sweeps unless told otherwise, Fig. 2 of the paper around a preset; and its inputs by name."""

from __future__ import annotations

from collections.abc import Sequence

from semantica.data.location import location
from semantica.errors import ConfigError
from semantica.evaluation.models import named
from semantica.pairs.selection import BandConfig
from semantica.presets import PipelineConfig
from semantica.sweeps.plan import SweepPlan
from semantica.sweeps.settings import SweepConfig
from semantica.sweeps.space import SpaceConfig
from semantica.training.recipe import TrainConfig


def fig2(preset: PipelineConfig) -> SpaceConfig:
    """Patching × the preset's rate and twice that × its band and all pairs × cross-attention and FiLM: 16 trials an encoder."""
    rate, band = preset.train.optimizer.learning_rate, preset.band
    return SpaceConfig(
        patching=("2x2", "none"),
        learning_rate=(rate, 2 * rate),
        band=tuple(dict.fromkeys([(band.low, band.high), (-1.0, 1.0)])),
        conditioning=("cross_attention", "film"),
    )


def sections(preset: PipelineConfig) -> dict[str, object]:
    """The defaults of the command for a preset."""
    return {"sweep": SweepConfig(space=fig2(preset)), "band": preset.band, "train": preset.train}


def asked(encodings: Sequence[str], scores: Sequence[str], sweep: SweepConfig, band: BandConfig, train: TrainConfig) -> SweepPlan:
    """The plan of a command."""
    found, scored = places(encodings, scores)
    return SweepPlan(encodings=found, scores=scored, sweep=sweep, band=band, train=train)


def places(encodings: Sequence[str], scores: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """(encodings, scores) by the name of their encoder, from texts NAME=PATH or PATH; no scores: those beside each encodings.

    Raises ConfigError when they do not go together.
    """
    found = {name: str(location(path)) for name, path in named(encodings, "encodings").items()}
    if not scores:
        return found, {name: str(location(path).parent / "scores") for name, path in found.items()}
    if len(scores) != len(found):
        raise ConfigError(f"--scores: expected {len(found)}, one for each of --encodings, got {len(scores)}")
    if not all("=" in text for text in scores):
        return found, {name: str(location(path)) for name, path in zip(found, scores, strict=True)}
    by_name = named(scores, "scores")
    if set(by_name) != set(found):
        raise ConfigError(f"--scores: expected the names {', '.join(found)} of --encodings, got {', '.join(by_name)}")
    return found, {name: str(location(by_name[name])) for name in found}
