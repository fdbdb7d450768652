"""python -m jobs.generate: checkpoint + held-out conditioning images -> samples."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jobs.command import run
from semantica.config import config
from semantica.data.location import location
from semantica.distributed.sample import generate
from semantica.generation.generate import GenerateConfig
from semantica.runtime import Runtime
from semantica.training.checkpoint import checkpoint_folder


@config
class GenerateJob:
    """checkpoint: the output of jobs.train, or a checkpoint in it. encodings: by the same encoder. out: of the samples."""

    checkpoint: Path
    encodings: str
    out: Path
    generate: Annotated[GenerateConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the job."""
    return run(
        GenerateJob,
        lambda job: generate(
            job.generate,
            checkpoint=checkpoint_folder(job.checkpoint),
            encodings=location(job.encodings),
            out=job.out,
            runtime=job.runtime,
        ),
        prog="jobs.generate",
        description="Draw new pictures with the meaning of held-out conditioning images, at several guidance weights w.",
        sections=lambda p: {"generate": p.generate},
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
