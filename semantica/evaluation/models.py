"""Which checkpoints an evaluation is of: NAME=PATH as a user gives them -> models, one per step where a run kept several."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semantica.conditioning.signals import check_constants
from semantica.data.dataset import Manifest
from semantica.denoiser.configs import DenoiserConfig
from semantica.diffusion.settings import GuidanceConfig
from semantica.encoders.encoder import EncoderIdentity
from semantica.errors import ConfigError, DataError
from semantica.training.checkpoint import Checkpoint, checkpoint_folders, open_checkpoint

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z")  # it names folders, and figures in MLflow
_FOLDERS = ("model", "checkpoints", "checkpoint", "encodings", "episodes")  # which say what lies in a run, not which run it is


@dataclass(frozen=True)
class EvaluatedModel:
    """A checkpoint by the name that figures carry: that of its run, with the step where the run has several."""

    name: str
    run: str
    checkpoint: Checkpoint

    @property
    def hash(self) -> str:
        """12 hex digits of the checkpoint's hash, which samples carry in their names."""
        return self.checkpoint.hash[:12]

    def samples_in(self, out: Path, data: str) -> Path:
        """Where its samples for the pictures of a set lie: by its hash alone, because its name changes with what else is asked."""
        return out / "samples" / self.hash / data


def named(texts: Sequence[str], what: str) -> dict[str, str]:
    """name -> path, from texts NAME=PATH or PATH, whose name is then the last part of the path that says something.

    Raises ConfigError when there is none, or two have one name.
    """
    paths: dict[str, str] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or "/" in name:
            name, path = _name_of(text), text
        if not path or not _NAME.match(name):
            raise ConfigError(f"--{what}: expected NAME=PATH or PATH, the name of letters, digits, . _ and -, got {text!r}")
        if name in paths:
            raise ConfigError(f"--{what}: two are called {name!r}; name them: --{what} one={paths[name]} other={path}")
        paths[name] = path
    if not paths:
        raise ConfigError(f"--{what}: expected one or several paths, got none")
    return paths


def _name_of(path: str) -> str:
    parts = [part for part in path.rstrip("/").split("/") if part and part != "."]
    while len(parts) > 1 and parts[-1] in _FOLDERS:
        parts.pop()
    return parts[-1].removesuffix(".parquet") if parts else ""


def last_of_runs(models: Sequence[EvaluatedModel]) -> list[str]:
    """The name of each run's model that was trained longest."""
    return list({model.run: model.name for model in models}.values())


def open_models(paths: dict[str, str], *, every_step: bool) -> list[EvaluatedModel]:
    """The models at `paths`, checkpoints or folders that hold them; every_step: all that were kept, else the last.

    Raises DataError when there is none, or when two draw at different resolutions.
    """
    opened: list[EvaluatedModel] = []
    for run, path in paths.items():
        folders = checkpoint_folders(Path(path))[0 if every_step else -1 :]
        by_step = {c.step: c for c in map(open_checkpoint, folders)}
        models = [by_step[step] for step in sorted(by_step)]
        opened += [EvaluatedModel(run if len(models) == 1 else f"{run}-step{c.step}", run, c) for c in models]
    check_one_resolution(opened)
    return opened


def check_one_resolution(models: Sequence[EvaluatedModel]) -> None:
    """Raise DataError when two models draw at different resolutions: their figures would not compare."""
    sides = {model.name: model.checkpoint.config.denoiser.resolution_px for model in models}
    if len(set(sides.values())) > 1:
        shown = ", ".join(f"{name} {side} px" for name, side in sides.items())
        raise DataError(f"evaluate: the checkpoints draw at different resolutions ({shown}); evaluate them apart")


def check_similarity(models: Sequence[EvaluatedModel], similarity: float | None) -> None:
    """Raise ConfigError when a similarity is asked for of a denoiser that takes none."""
    without = [model.name for model in models if not model.checkpoint.config.denoiser.similarity]
    if similarity is not None and without:
        raise ConfigError(
            f"evaluation.similarity: the denoiser of {', '.join(without)} takes none; train one with train.denoiser.similarity, or "
            "leave it out"
        )


def check_signals(denoiser: DenoiserConfig, signals: Sequence[str], beyond: GuidanceConfig, owner: type) -> None:
    """Raise FieldError when values or guidance weights are given for signals that the denoiser is not told. owner: of `signals`."""
    check_constants(signals, denoiser.signals, denoiser.resolution_px, owner)
    beyond.weights_of(denoiser.signals)


def check_same_encoder(trained_with: Mapping[str, Any], encodings: Manifest) -> None:
    """Raise DataError unless the encodings were made by the encoder that the checkpoint was trained with."""
    made_by = encodings.facts["encoder"]
    for field in EncoderIdentity.from_dict(dict(trained_with)).differing_fields(EncoderIdentity.from_dict(made_by)):
        raise DataError(
            f"generate: the checkpoint was trained with {trained_with['name']} ({field} {trained_with[field]}), but the encodings "
            f"were made by {made_by['name']} ({field} {made_by[field]}); encode the pictures with the checkpoint's encoder"
        )
