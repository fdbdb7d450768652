"""python -m tune.sweep: encodings + scores -> trials of patching, learning rate, band, conditioning, and which is best."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jobs.command import run, shown_command
from semantica.config import config
from semantica.distributed.sweep import sweep
from semantica.pairs.selection import BandConfig
from semantica.runtime import Runtime
from semantica.sweeps.plan import begun
from semantica.sweeps.settings import SweepConfig
from semantica.training.recipe import TrainConfig
from tune.spaces import asked, sections


@config
class SweepJob:
    """encodings: NAME=PATH or PATH of outputs of jobs.encode, one an encoder; the first one measures. out: the sweep's folder.

    scores: those of each; none: the folder "scores" beside it. resume: go on with the sweep in --out, whose settings hold.
    """

    out: Path
    encodings: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    resume: bool = False
    max_concurrent: int | None = None
    sweep: Annotated[SweepConfig, tyro.conf.arg(name="")]
    band: BandConfig
    train: TrainConfig
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


def call(job: SweepJob, command: str) -> None:
    """Begin the sweep, or go on with it."""
    plan = begun(job.out) if job.resume else asked(job.encodings, job.scores, job.sweep, job.band, job.train)
    sweep(plan, out=job.out, runtime=job.runtime, max_concurrent=job.max_concurrent, command=command)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""
    return run(
        SweepJob,
        lambda job: call(job, shown_command("tune.sweep", argv)),
        prog="tune.sweep",
        description="Train with different settings, and say which are best. Stopped or killed, the same command goes on.",
        sections=sections,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
