"""python -m jobs.evaluate: checkpoints + evaluation data -> the paper's protocols, report.html and report.json."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jobs.command import run, shown_command
from semantica.config import config, require
from semantica.distributed.evaluate import evaluate
from semantica.distributed.evaluate_samples import evaluate_samples
from semantica.evaluation.models import named
from semantica.evaluation.settings import EvaluationConfig
from semantica.metrics.evaluate import EvaluateConfig
from semantica.metrics.summary import Sources
from semantica.presets import PipelineConfig
from semantica.runtime import Runtime


@config
class EvaluateJob:
    """checkpoint: NAME=PATH or PATH of checkpoints or outputs of jobs.train. data: NAME=PATH or PATH, what to evaluate on.

    data is a folder of pictures, a folder of class folders, Parquet of pictures, or an output of jobs.ingest or jobs.encode, whose
    held-out pictures are taken. out: the folder of everything; ask for more in the same one, and only what is missing is done.
    encoder: a folder with the encoder's weights, where they are no longer where the training found them. train: the encodings that
    the first checkpoint was trained on, so that `details` can say whether samples are copies.

    samples, with encodings (and episodes, selection): measure what jobs.generate drew instead, as the demo does.
    """

    checkpoint: tuple[str, ...]
    out: Path
    data: tuple[str, ...] = ()
    encoder: str = ""
    train: str = ""
    samples: Path | None = None
    encodings: str = ""
    episodes: Path | None = None
    selection: Path | None = None
    demo: EvaluateConfig
    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


def call(job: EvaluateJob, command: str) -> None:
    """Evaluate what the job names."""
    other = "--samples with --encodings and one --checkpoint"
    require((job.samples is None) == bool(job.data), "--data", f"given, or {other} instead", job.data)
    if job.samples is None:
        checkpoints, data = named(job.checkpoint, "checkpoint"), named(job.data, "data")
        evaluate(
            job.evaluation,
            checkpoints=checkpoints,
            data=data,
            out=job.out,
            runtime=job.runtime,
            encoder=job.encoder,
            train=job.train,
            command=command,
        )
        print(f"Report: {job.out.absolute() / 'report.html'}")
        return
    require(bool(job.encodings) and len(job.checkpoint) == 1, "--samples", f"given as {other}", job.checkpoint)
    evaluate_samples(
        job.demo,
        samples=job.samples,
        checkpoint=Path(job.checkpoint[0]),
        encodings=job.encodings,
        out=job.out,
        runtime=job.runtime,
        sources=Sources(episodes=job.episodes, selection=job.selection, command=command),
    )


def sections(preset: PipelineConfig) -> dict[str, object]:
    """The preset's settings: samples are drawn as by its generate."""
    drawn = preset.generate
    evaluation = EvaluationConfig(sampler=drawn.sampler, beyond=drawn.beyond, speed=drawn.speed, centred=preset.evaluate.centred)
    return {"demo": preset.evaluate, "evaluation": evaluation}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the job."""
    return run(
        EvaluateJob,
        lambda job: call(job, shown_command("jobs.evaluate", argv)),
        prog="jobs.evaluate",
        description="Run the paper's protocols for checkpoints on evaluation data, and write the report.",
        sections=sections,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
