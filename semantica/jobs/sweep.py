"""`semantica sweep`: encodings + scores -> trials of patching, learning rate, band, conditioning, and which is best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from semantica.config import config
from semantica.data.location import location
from semantica.distributed.runtime import Runtime
from semantica.errors import ConfigError
from semantica.jobs.command import Command, shown_command
from semantica.pairs.selection import BandConfig
from semantica.presets import PipelineConfig
from semantica.sweeps.plan import SweepPlan, read_plan
from semantica.sweeps.settings import SweepConfig
from semantica.sweeps.space import SpaceConfig
from semantica.training.recipe import TrainConfig


@config
class SweepJob:
    """The settings of `semantica sweep`."""

    out: Path  # folder of the sweep
    encodings: tuple[str, ...] = ()  # NAME=PATH or PATH of each output of `semantica encode`; the first encoder measures
    scores: tuple[str, ...] = ()  # scores of each; empty: the folder scores beside it
    resume: bool = False  # resume the sweep in out, with the settings that it began with
    max_concurrent: int | None = None  # trials at a time
    sweep: Annotated[SweepConfig, tyro.conf.arg(name="")]
    band: BandConfig
    train: TrainConfig
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


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
    """The defaults of the command for a preset: Fig. 2 of the paper around it."""
    return {"sweep": SweepConfig(space=fig2(preset)), "band": preset.band, "train": preset.train}


def places(encodings: Sequence[str], scores: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """(encodings, scores) by the name of their encoder, from texts NAME=PATH or PATH; no scores: those beside each encodings.

    Raises ConfigError when they do not go together.
    """
    from semantica.evaluation.models import named

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


COMMAND = Command(
    name="sweep",
    about="Train with different settings, and report which are best. Stopped or killed, the same command resumes.",
    settings=SweepJob,
    sections=sections,
    common={
        "encodings": "NAME=PATH or PATH of each output of `semantica encode`; the first encoder measures",
        "out": "folder of the sweep",
        "scores": "scores of each; none: the folder scores beside it",
        "resume": "resume the sweep in --out, with the settings that it began with",
        "sweep.search": "every combination, a random choice, or a search by figures",
        "sweep.num_trials": "trials of random and optuna",
        "sweep.stopping": "how trials are stopped early",
        "sweep.space.patching": "values to try",
        "sweep.space.learning_rate": "values to try",
        "sweep.space.conditioning": "values to try",
        "sweep.measure.num": "samples that measure a trial",
        "train.num_steps": "steps of one trial",
        "max_concurrent": "trials at a time; none: as many as there is room for",
        "runtime.cluster.num_workers": "training processes per trial",
        "runtime.cluster.use_gpu": "one GPU per training process",
    },
)


def plan_of(job: SweepJob) -> SweepPlan:
    """What the command asks for, or what the sweep in `out` began with."""
    if job.resume:
        return read_plan(job.out)
    encodings, scores = places(job.encodings, job.scores)
    return SweepPlan(encodings=encodings, scores=scores, sweep=job.sweep, band=job.band, train=job.train)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""

    def call(job: SweepJob) -> None:
        from semantica.distributed.sweep import sweep

        command = shown_command("sweep", argv)
        sweep(plan_of(job), out=job.out, runtime=job.runtime, max_concurrent=job.max_concurrent, command=command)

    return COMMAND.run(call, argv)
