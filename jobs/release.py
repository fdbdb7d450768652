"""python -m jobs.release: checkpoint -> a released model, a folder for semantica.load and for a hub."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.command import run
from semantica.config import config
from semantica.data.location import location
from semantica.diffusion.samplers import SamplerConfig
from semantica.generation.model_card import model_card, read_report
from semantica.generation.pipeline import trained
from semantica.generation.release import release_of, write_release
from semantica.presets import PRESETS
from semantica.training.checkpoint import open_checkpoint


@config
class ReleaseJob:
    """checkpoint: output of jobs.train. out: a new folder. sampler: that draws when a user names none.

    encodings, selection: of the training, for the size of stored pictures and the band. report: report.json, for the model card.
    """

    checkpoint: Path
    out: Path
    encodings: str | None = None
    selection: str | None = None
    report: Path | None = None
    sampler: SamplerConfig


def release(job: ReleaseJob) -> None:
    """Write the released model and say where."""
    checkpoint = open_checkpoint(trained(job.checkpoint))
    preset = ", ".join(name for name, make in PRESETS.items() if make().train == checkpoint.config)
    encodings, selection = (location(where) if where else None for where in (job.encodings, job.selection))
    known = release_of(checkpoint, sampler=job.sampler, preset=preset, encodings=encodings, selection=selection)
    card = model_card(known, read_report(job.report) if job.report else None)
    write_release(job.out, checkpoint.network(), known, card)
    print(f"release   {job.out}: semantica.load draws with it; its model card, README.md, has no license yet")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the job."""
    return run(
        ReleaseJob,
        release,
        prog="jobs.release",
        description="Release a trained model: EMA weights, configuration and model card, without a path of this machine.",
        sections=lambda p: {"sampler": p.generate.sampler},
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
