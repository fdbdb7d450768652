"""`semantica release`: checkpoint -> a released model, a folder for semantica.load and for a hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from semantica.config import config
from semantica.diffusion.settings import SamplerConfig
from semantica.jobs.command import Command
from semantica.presets import PRESETS


@config
class ReleaseJob:
    """The settings of `semantica release`."""

    checkpoint: Path  # output of `semantica train`, or a checkpoint in it
    out: Path  # a new folder
    encodings: str | None = None  # of the training, for the size of stored pictures
    selection: str | None = None  # of the training, for the band
    report: Path | None = None  # report.json, for the figures of the model card
    sampler: SamplerConfig  # draws when a user names none


COMMAND = Command(
    name="release",
    about="Release a trained model: EMA weights, configuration and model card, without a path of this machine.",
    settings=ReleaseJob,
    sections=lambda p: {"sampler": p.generate.sampler},
    common={
        "checkpoint": "output of `semantica train`, or a checkpoint in it",
        "out": "a new folder",
        "encodings": "of the training, for the size of stored pictures",
        "selection": "of the training, for the band",
        "report": "report.json of `semantica evaluate`, for the figures of the model card",
        "sampler.name": "sampler that draws when a user names none",
        "sampler.num_steps": "its steps",
    },
)


def release(job: ReleaseJob) -> None:
    """Write the released model and say where."""
    from semantica.data.location import location
    from semantica.generation.model_card import model_card, read_report
    from semantica.generation.pipeline import trained
    from semantica.generation.release import release_of, write_release
    from semantica.training.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(trained(job.checkpoint))
    preset = ", ".join(name for name, make in PRESETS.items() if make().train == checkpoint.config)
    encodings, selection = (location(where) if where else None for where in (job.encodings, job.selection))
    known = release_of(checkpoint, sampler=job.sampler, preset=preset, encodings=encodings, selection=selection)
    card = model_card(known, read_report(job.report) if job.report else None)
    write_release(job.out, checkpoint.network(), known, card)
    print(f"release   {job.out}: semantica.load draws with it; its model card, README.md, has no license yet")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""
    return COMMAND.run(release, argv)
