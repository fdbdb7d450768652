"""`semantica evaluate-samples`: samples of `semantica generate` + encodings -> figures and report, as in the demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from semantica.config import config
from semantica.jobs.command import Command, shown_command
from semantica.metrics.settings import EvaluateConfig
from semantica.runtime import Runtime


@config
class EvaluateSamplesJob:
    """The settings of `semantica evaluate-samples`."""

    samples: Path  # output of `semantica generate`
    checkpoint: Path  # output of `semantica train` that drew them, or a checkpoint in it
    encodings: str  # whose held-out pictures were the conditioning images
    out: Path  # folder of the report
    episodes: Path | None = None  # for the report
    selection: Path | None = None  # for the report
    evaluate: Annotated[EvaluateConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


COMMAND = Command(
    name="evaluate-samples",
    about="Measure samples of `semantica generate` against held-out pictures. The paper's protocols: semantica evaluate.",
    settings=EvaluateSamplesJob,
    sections=lambda p: {"evaluate": p.evaluate},
    common={
        "samples": "output of `semantica generate`",
        "checkpoint": "output of `semantica train` that drew them, or a checkpoint in it",
        "encodings": "whose held-out pictures were the conditioning images",
        "out": "folder of the report",
        "episodes": "output of `semantica ingest`, for the report",
        "selection": "output of `semantica pairs`, for the report",
        "evaluate.guidance": "the guidance weight w whose figures stand first",
        "evaluate.inception": "measure with Inception, where its weights are on this machine",
        "evaluate.perceptual": "measure with LPIPS, where its weights are on this machine",
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""

    def call(job: EvaluateSamplesJob) -> None:
        from semantica.distributed.evaluate_samples import evaluate_samples
        from semantica.generation.pipeline import trained
        from semantica.metrics.summary import Sources

        sources = Sources(
            episodes=job.episodes, selection=job.selection, command=shown_command("evaluate-samples", argv),
        )  # fmt: skip
        evaluate_samples(
            job.evaluate, samples=job.samples, checkpoint=trained(job.checkpoint), encodings=job.encodings, out=job.out,
            runtime=job.runtime, sources=sources,
        )  # fmt: skip
        print(f"Report: {job.out.absolute() / 'report.html'}")

    return COMMAND.run(call, argv)
