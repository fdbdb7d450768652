"""python -m jobs.pipeline: a crawl through every stage to a report, with one configuration; what is done is skipped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jobs.command import run, shown_command
from semantica.config import config
from semantica.data.location import location
from semantica.distributed.pipeline import pipeline
from semantica.presets import PipelineConfig
from semantica.runtime import Runtime


@config
class PipelineJob:
    """root: the crawl, a folder or a file. out: checkpoint, samples and report, on a disk that all machines of the cluster see.

    data: episodes, encodings, scores and selection; s3://BUCKET/... or gs://BUCKET/..., too, as root may be. Default: out.
    """

    root: str
    out: Path
    data: str = ""
    pipeline: Annotated[PipelineConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the job."""

    def call(job: PipelineJob) -> None:
        command = shown_command("jobs.pipeline", argv)
        data = location(job.data) if job.data else None
        pipeline(job.pipeline, root=location(job.root), out=job.out, data=data, runtime=job.runtime, command=command)
        print(f"Report: {job.out.absolute() / 'evaluation' / 'report.html'}")

    return run(
        PipelineJob,
        call,
        prog="jobs.pipeline",
        description="Ingest, encode, pair, train, generate and evaluate. The same command goes on where it stopped; after a "
        "changed setting give --fresh, and only the stages that it changes are done again.",
        sections=lambda p: {"pipeline": p},
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
