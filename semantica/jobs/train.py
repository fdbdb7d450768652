"""`semantica train`: encodings + selection -> checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from semantica.config import config
from semantica.data.location import location
from semantica.distributed.runtime import Runtime
from semantica.jobs.command import Command
from semantica.training.recipe import TrainConfig


@config
class TrainJob:
    """The settings of `semantica train`."""

    encodings: str  # output of `semantica encode`
    selection: str  # output of `semantica pairs`
    out: Path  # folder of the run; the checkpoint is model/ in it
    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


COMMAND = Command(
    name="train",
    about="Train the denoiser on the selected pairs. Stopped by Ctrl-C or SIGTERM it saves first and ends with 0; "
    "the same command resumes from the last checkpoint.",
    settings=TrainJob,
    sections=lambda p: {"train": p.train},
    common={
        "encodings": "output of `semantica encode`",
        "selection": "output of `semantica pairs`",
        "out": "folder of the run; the checkpoint is model/ in it",
        "train.num_steps": "steps of the optimizer; a larger number continues a finished training",
        "train.init_from": "start from the weights of this output, checkpoint, release or ORG/NAME of a hub; none: random ones",
        "train.batch_size": "pairs per step, over all workers",
        "train.optimizer.learning_rate": "of Adam, after the warm-up",
        "train.micro_batch_size": "pairs that a worker computes at once, to save memory; none: all",
        "train.compute.precision": "of products and convolutions",
        "train.checkpoint_every": "steps between two checkpoints",
        "train.sample_every": "steps between two sheets of samples; none: no samples",
        "train.seed": "of weights, batches and noise",
        "runtime.cluster.num_workers": "training processes",
        "runtime.cluster.use_gpu": "one GPU per training process",
        "runtime.fresh": "replace a training that other settings made",
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""

    def call(job: TrainJob) -> None:
        from semantica.distributed.train import train
        from semantica.training.start import open_inputs

        inputs = open_inputs(job.train, location(job.encodings), location(job.selection))
        train(job.train, inputs, out=job.out, runtime=job.runtime)

    return COMMAND.run(call, argv)
