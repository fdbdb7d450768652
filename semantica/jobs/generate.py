"""`semantica generate`: checkpoint + held-out conditioning images -> samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from semantica.config import config
from semantica.distributed.runtime import Runtime
from semantica.generation.settings import GenerateConfig
from semantica.jobs.command import Command


@config
class GenerateJob:
    """The settings of `semantica generate`."""

    checkpoint: Path  # output of `semantica train`, or a checkpoint in it
    encodings: str  # made by the encoder of the training
    out: Path  # folder of the samples
    generate: Annotated[GenerateConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


COMMAND = Command(
    name="generate",
    about="Draw new pictures with the meaning of held-out conditioning images, at several guidance weights w.",
    settings=GenerateJob,
    sections=lambda p: {"generate": p.generate},
    common={
        "checkpoint": "output of `semantica train`, or a checkpoint in it",
        "encodings": "pictures to draw from, made by the encoder of the training",
        "out": "folder of the samples",
        "generate.num_conditions": "conditioning images",
        "generate.samples_per_condition": "samples per conditioning image and w",
        "generate.guidance": "the guidance weights w; 0 is none",
        "generate.similarity": "wanted similarity to the conditioning image, for denoisers that take one",
        "generate.signals": "NAME=NUMBER,... or NAME=none of declared signals, for all pictures; others: a column of the encodings",
        "generate.sampler.name": "the sampler",
        "generate.sampler.num_steps": "its steps",
        "generate.batch_size": "samples per shard of work",
        "generate.seed": "of the noise",
        "runtime.cluster.num_actors": "processes that draw, at most",
        "runtime.cluster.gpus_per_actor": "GPUs of each",
        "runtime.fresh": "replace samples that other settings made",
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""

    def call(job: GenerateJob) -> None:
        from semantica.data.location import location
        from semantica.distributed.sample import generate
        from semantica.training.checkpoint import checkpoint_folder

        checkpoint, encodings = checkpoint_folder(job.checkpoint), location(job.encodings)
        generate(job.generate, checkpoint=checkpoint, encodings=encodings, out=job.out, runtime=job.runtime)

    return COMMAND.run(call, argv)
