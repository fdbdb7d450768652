"""`semantica evaluate`: checkpoints + evaluation data -> the paper's protocols, report.html and report.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from semantica.config import config, require
from semantica.distributed.runtime import Runtime
from semantica.evaluation.settings import EvaluationConfig
from semantica.jobs.command import Command, shown_command


@config
class EvaluateJob:
    """The settings of `semantica evaluate`. Run it again in the same folder with more, and only what is missing is computed.

    data: a folder of pictures, a folder of class folders, Parquet of pictures, or an output of `semantica ingest` or
    `semantica encode`, whose held-out pictures are taken.
    """

    checkpoint: tuple[str, ...]  # NAME=PATH or PATH of each model: a checkpoint, or an output of `semantica train`
    data: tuple[str, ...]  # NAME=PATH or PATH of each set to evaluate on
    out: Path  # folder of samples, figures and report
    encoder: str = ""  # folder with the encoder's weights, where they are no longer where the training read them
    train: str = ""  # encodings that the first model was trained on: `details` then says whether samples are copies
    samples: Path | None = None  # output of `semantica generate` from the encodings that `data` names, for the protocol overview
    episodes: Path | None = None  # of `samples`, for the report
    selection: Path | None = None  # of `samples`, for the report
    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


COMMAND = Command(
    name="evaluate",
    about="Run the paper's protocols for models on evaluation data, and write report.html and report.json.",
    settings=EvaluateJob,
    sections=lambda p: {"evaluation": EvaluationConfig.drawn_as(p.generate, centred=p.evaluate.centred)},
    common={
        "checkpoint": "NAME=PATH or PATH of each model: a checkpoint, or an output of `semantica train`",
        "data": "NAME=PATH or PATH of each set: a folder of pictures or of class folders, Parquet of pictures, episodes, encodings",
        "out": "folder of samples, figures and report; run again with more, only what is missing is computed",
        "evaluation.protocol": "one or several of curve, one-shot, grouping, training, details, grids; or overview alone",
        "samples": "output of `semantica generate` to measure instead of drawing: an overview beside training pictures and noise",
        "evaluation.num": "conditioning images of a curve",
        "evaluation.guidance": "the guidance weights w of a curve",
        "evaluation.signals": "NAME=NUMBER,... or NAME=none of declared signals, for all samples",
        "evaluation.extractor": "networks that measure; none: those whose weights are on this machine",
        "evaluation.reference": "compare with all pictures of the set, or with those that are no conditioning images",
        "evaluation.sampler.num_steps": "steps of the sampler",
        "evaluation.allow_network": "fetch weights of metrics that are not on this machine",
        "evaluation.seed": "of choices and noise",
        "runtime.cluster.num_actors": "processes that draw and measure, at most",
        "runtime.cluster.gpus_per_actor": "GPUs of each",
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""

    def call(job: EvaluateJob) -> None:
        from semantica.data.location import location
        from semantica.distributed.evaluate import GivenSamples, evaluate, evaluate_samples
        from semantica.evaluation.models import named
        from semantica.evaluation.outcome import Sources

        checkpoints, data = named(job.checkpoint, "checkpoint"), named(job.data, "data")
        train, command = location(job.train) if job.train else None, shown_command("evaluate", argv)
        sources = Sources(episodes=job.episodes, selection=job.selection, train=train, command=command)
        if job.samples is None:
            evaluate(
                job.evaluation, checkpoints=checkpoints, data=data, out=job.out, runtime=job.runtime, encoder=job.encoder,
                sources=sources,
            )  # fmt: skip
        else:
            one = len(checkpoints) == len(data) == 1
            require(one, "samples", "of one --checkpoint and one --data", f"{len(checkpoints)} and {len(data)}", of=EvaluateJob)
            (checkpoint,), (encodings,) = checkpoints.values(), data.values()
            given = GivenSamples(job.samples.absolute(), Path(checkpoint), location(encodings))
            evaluate_samples(job.evaluation.overview(), given, out=job.out, runtime=job.runtime, sources=sources)
        print(f"Report: {job.out.absolute() / 'report.html'}")

    return COMMAND.run(call, argv)
