"""python -m jobs.evaluate: samples -> figures, report.html and report.json."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jobs.command import run, shown_command
from semantica.config import config
from semantica.distributed.evaluate import evaluate
from semantica.metrics.evaluate import EvaluateConfig
from semantica.metrics.summary import Sources
from semantica.runtime import Runtime


@config
class EvaluateJob:
    """samples, checkpoint (out/model of jobs.train), encodings: what is measured, against which pictures. out: the report's folder.

    episodes, selection: outputs of jobs.ingest and jobs.pairs, which make the report fuller.
    """

    samples: Path
    checkpoint: Path
    encodings: str
    out: Path
    episodes: Path | None = None
    selection: Path | None = None
    evaluate: Annotated[EvaluateConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the job."""

    def call(job: EvaluateJob) -> None:
        sources = Sources(episodes=job.episodes, selection=job.selection, command=shown_command("jobs.evaluate", argv))
        evaluate(
            job.evaluate,
            samples=job.samples,
            checkpoint=job.checkpoint,
            encodings=job.encodings,
            out=job.out,
            runtime=job.runtime,
            sources=sources,
        )

    return run(
        EvaluateJob,
        call,
        prog="jobs.evaluate",
        description="Measure samples against held-out pictures and write the report.",
        sections=lambda p: {"evaluate": p.evaluate},
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
