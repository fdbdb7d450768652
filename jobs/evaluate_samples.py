"""python -m jobs.evaluate_samples: what jobs.generate drew + encodings -> figures, report.html and report.json, as in the demo."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jobs.command import run, shown_command
from semantica.config import config
from semantica.distributed.evaluate_samples import evaluate_samples
from semantica.metrics.settings import EvaluateConfig
from semantica.metrics.summary import Sources
from semantica.runtime import Runtime


@config
class EvaluateSamplesJob:
    """samples: output of jobs.generate, drawn from checkpoint for held-out pictures of encodings.

    episodes, selection: what else the report tells of.
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

    def call(job: EvaluateSamplesJob) -> None:
        command = shown_command("jobs.evaluate_samples", argv)
        sources = Sources(episodes=job.episodes, selection=job.selection, command=command)
        evaluate_samples(
            job.evaluate, samples=job.samples, checkpoint=job.checkpoint, encodings=job.encodings, out=job.out,
            runtime=job.runtime, sources=sources,
        )  # fmt: skip
        print(f"Report: {job.out.absolute() / 'report.html'}")

    return run(
        EvaluateSamplesJob,
        call,
        prog="jobs.evaluate_samples",
        description="Measure samples that are there, with held-out pictures as reference. The paper's protocols: jobs.evaluate.",
        sections=lambda p: {"evaluate": p.evaluate},
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
