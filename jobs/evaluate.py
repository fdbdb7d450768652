"""python -m jobs.evaluate: checkpoints + evaluation data -> the paper's protocols, report.html and report.json."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jobs.command import run, shown_command
from semantica.config import config
from semantica.distributed.evaluate import evaluate
from semantica.evaluation.models import named
from semantica.evaluation.settings import EvaluationConfig
from semantica.runtime import Runtime


@config
class EvaluateJob:
    """checkpoint: NAME=PATH or PATH of checkpoints or outputs of jobs.train. data: NAME=PATH or PATH, what to evaluate on.

    data is a folder of pictures, a folder of class folders, Parquet of pictures, or an output of jobs.ingest or jobs.encode, whose
    held-out pictures are taken. out: the folder of everything; ask for more in the same one, and only what is missing is done.
    encoder: a folder with the encoder's weights, where they are no longer where the training found them. train: the encodings that
    the first checkpoint was trained on, so that `details` can say whether samples are copies.
    """

    checkpoint: tuple[str, ...]
    data: tuple[str, ...]
    out: Path
    encoder: str = ""
    train: str = ""
    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the job."""

    def call(job: EvaluateJob) -> None:
        evaluate(
            job.evaluation, checkpoints=named(job.checkpoint, "checkpoint"), data=named(job.data, "data"), out=job.out,
            runtime=job.runtime, encoder=job.encoder, train=job.train, command=shown_command("jobs.evaluate", argv),
        )  # fmt: skip
        print(f"Report: {job.out.absolute() / 'report.html'}")

    return run(
        EvaluateJob,
        call,
        prog="jobs.evaluate",
        description="Run the paper's protocols for checkpoints on evaluation data, and write the report.",
        sections=lambda p: {"evaluation": EvaluationConfig.drawn_as(p.generate, centred=p.evaluate.centred)},
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
