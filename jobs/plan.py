"""python -m jobs.plan: what an experiment computes, holds, stores, reads, takes and costs, and what of it does not fit."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console

from jobs.command import run
from semantica.config import config
from semantica.data.dataset import read_manifest
from semantica.data.location import location
from semantica.planning.machines import PlanConfig
from semantica.planning.pairs import page_counts
from semantica.planning.plan import make_plan
from semantica.planning.tables import show
from semantica.presets import PipelineConfig


@config
class PlanJob:
    """episodes, scores: outputs of jobs.ingest and jobs.pairs on a sample, to measure instead of estimating. json: every figure."""

    plan: Annotated[PlanConfig, tyro.conf.arg(name="")] = PlanConfig()
    episodes: str | None = None
    scores: str | None = None
    json: bool = False
    pipeline: Annotated[PipelineConfig, tyro.conf.arg(name="")]


def _show(job: PlanJob) -> None:
    episodes = read_manifest(location(job.episodes), "episodes") if job.episodes else None
    sample = page_counts(location(job.scores), job.pipeline.band) if job.scores else None
    plan = make_plan(job.pipeline, job.plan, episodes, sample)
    if job.json:
        print(json_format.dumps(plan.to_dict(), indent=1))
        return
    show(plan, Console())


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the job."""
    about = "Parameters, FLOPs, memory, storage, bandwidth, hours and cost of every stage, before anything is launched."
    return run(
        PlanJob, _show, prog="jobs.plan", description=about, sections=lambda p: {"pipeline": p}, default_preset="base", argv=argv
    )


if __name__ == "__main__":
    sys.exit(main())
