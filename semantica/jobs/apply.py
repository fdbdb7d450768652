"""`semantica apply TASK`: an application of a trained model over a folder of pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from semantica.applications.settings import ApplyConfig, Task
from semantica.config import config
from semantica.distributed.runtime import Runtime
from semantica.jobs.command import Command


@config
class ApplyJob:
    """The settings of `semantica apply`. The first word may be the task: `semantica apply edit ...` is `--task edit`."""

    task: Task
    checkpoint: Path  # released model, checkpoint, or output of `semantica train`
    pictures: Path  # folder of pictures
    out: Path  # folder of the results
    like: str = "self"  # conditioning images: "self", "none", a picture for all, or a folder with files of the same names
    masks: Path | None = None  # folder with files of the same names, white where inpaint draws, or where edit keeps the picture
    encoder: str = ""  # folder of the encoder, for a model that was trained with a local one
    apply: Annotated[ApplyConfig, tyro.conf.arg(name="")] = ApplyConfig()
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


COMMAND = Command(
    name="apply",
    about="Edit, refine, inpaint, vary, interpolate or invert every picture of a folder with a trained model.",
    settings=ApplyJob,
    sections=lambda p: {},
    common={
        "task": "edit, refine, inpaint, vary, interpolate or invert; it may be the first word",
        "checkpoint": "released model, checkpoint, or output of `semantica train`",
        "pictures": "folder of pictures",
        "out": "folder of the results",
        "like": "conditioning images: self, none, a picture for all, or a folder with files of the same names",
        "masks": "folder with files of the same names, white where inpaint draws, or where edit keeps the picture",
        "apply.samples_per_picture": "samples per picture",
        "apply.guidance": "the guidance weight w; 0.5 where none is given, of invert 0",
        "apply.strength": "of edit: the noise level at which drawing begins; 0 is the picture, 1 ignores it",
        "apply.factor": "of refine: by which the picture is reduced",
        "apply.num_steps": "steps of the sampler; as the model's release says where none is given",
        "apply.seed": "of the noise",
        "runtime.cluster.num_actors": "processes that draw, at most",
        "runtime.cluster.gpus_per_actor": "GPUs of each",
        "runtime.fresh": "replace results that other settings made",
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""

    def call(job: ApplyJob) -> None:
        from semantica.applications.folder import NONE, SELF, Folders
        from semantica.distributed.apply import apply_to_folder

        like = job.like if job.like in (SELF, NONE) else str(Path(job.like).expanduser().absolute())
        folders = Folders(job.pictures.absolute(), like, job.masks and job.masks.absolute())
        apply_to_folder(
            job.task,
            job.apply,
            checkpoint=job.checkpoint.absolute(),
            folders=folders,
            out=job.out,
            runtime=job.runtime,
            encoder=job.encoder,
        )

    words = list(sys.argv[1:] if argv is None else argv)
    return COMMAND.run(call, ["--task", *words] if words and not words[0].startswith("-") else words)
