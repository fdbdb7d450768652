"""python -m jobs.evaluate: checkpoints + evaluation data -> the paper's protocols, report.html and report.json."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jobs.command import run, shown_command
from semantica.config import config
from semantica.data.location import location
from semantica.distributed.evaluate import GivenSamples, evaluate, evaluate_samples
from semantica.errors import ConfigError
from semantica.evaluation.models import named
from semantica.evaluation.outcome import Sources
from semantica.evaluation.settings import EvaluationConfig
from semantica.runtime import Runtime


@config
class EvaluateJob:
    """checkpoint: NAME=PATH or PATH of checkpoints or outputs of jobs.train. data: NAME=PATH or PATH, what to evaluate on.

    data is a folder of pictures, a folder of class folders, Parquet of pictures, or an output of jobs.ingest or jobs.encode, whose
    held-out pictures are taken. out: the folder of everything; ask for more in the same one, and only what is missing is done.
    encoder: a folder with the encoder's weights, where they are no longer where the training found them. train: the encodings that
    the first checkpoint was trained on, so that `details` can say whether samples are copies. samples: an output of jobs.generate,
    which is measured instead of drawing: the protocol is overview then, data the encodings that the samples were drawn for, and
    episodes and selection are what else its report tells of.
    """

    checkpoint: tuple[str, ...]
    data: tuple[str, ...]
    out: Path
    encoder: str = ""
    train: str = ""
    samples: Path | None = None
    episodes: Path | None = None
    selection: Path | None = None
    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


def call(job: EvaluateJob, command: str) -> None:
    """Evaluate, and say where the report is."""
    checkpoints, data = named(job.checkpoint, "checkpoint"), named(job.data, "data")
    train = location(job.train) if job.train else None
    sources = Sources(episodes=job.episodes, selection=job.selection, train=train, command=command)
    if job.samples is None:
        evaluate(
            job.evaluation,
            checkpoints=checkpoints,
            data=data,
            out=job.out,
            runtime=job.runtime,
            encoder=job.encoder,
            sources=sources,
        )
    else:
        if len(checkpoints) > 1 or len(data) > 1:
            raise ConfigError(
                "--samples: they are of one checkpoint and one encodings dataset; give one --checkpoint and one --data"
            )
        (checkpoint,), (encodings,) = checkpoints.values(), data.values()
        given = GivenSamples(job.samples.absolute(), Path(checkpoint), location(encodings))
        evaluate_samples(job.evaluation.overview(), given, out=job.out, runtime=job.runtime, sources=sources)
    print(f"Report: {job.out.absolute() / 'report.html'}")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the job."""
    return run(
        EvaluateJob,
        lambda job: call(job, shown_command("jobs.evaluate", argv)),
        prog="jobs.evaluate",
        description="Run the paper's protocols for checkpoints on evaluation data, and write the report.",
        sections=lambda p: {"evaluation": EvaluationConfig.drawn_as(p.generate, centred=p.evaluate.centred)},
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
