"""python -m jobs.train: encodings + selection -> checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jobs.command import run
from semantica.config import config
from semantica.data.location import location
from semantica.distributed.train import train
from semantica.runtime import Runtime
from semantica.training.recipe import TrainConfig


@config
class TrainJob:
    """encodings, selection: outputs of jobs.encode and jobs.pairs. out: folder of the checkpoint (out/model)."""

    encodings: str
    selection: str
    out: Path
    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the job."""
    return run(
        TrainJob,
        lambda job: train(
            job.train, encodings=location(job.encodings), selection=location(job.selection), out=job.out, runtime=job.runtime
        ),
        prog="jobs.train",
        description="Train the denoiser on the selected pairs. "
        "Stopped by Ctrl-C or SIGTERM it saves first and ends with 0; the same command goes on.",
        sections=lambda p: {"train": p.train},
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
