"""python -m jobs.plan: what the data of a run will store and read, with tokens precomputed or encoded on the fly."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from jobs.command import run
from semantica.config import config
from semantica.datasets import read_manifest
from semantica.planning import PlanConfig, plan_data, rows
from semantica.presets import PipelineConfig
from semantica.storage import location


@config
class PlanJob:
    """episodes: output of jobs.ingest on a sample, to measure instead of estimating. json: every figure, for a program."""

    plan: Annotated[PlanConfig, tyro.conf.arg(name="")] = PlanConfig()
    episodes: str | None = None
    json: bool = False
    pipeline: Annotated[PipelineConfig, tyro.conf.arg(name="")]


def _show(job: PlanJob) -> None:
    plan = plan_data(job.pipeline, job.plan, read_manifest(location(job.episodes), "episodes") if job.episodes else None)
    if job.json:
        print(json_format.dumps(plan.to_dict(), indent=1))
        return
    source = "measured" if plan.measured else "estimated"
    table = Table("", "tokens precomputed", "encoded on the fly", title=f"{job.plan.num_images:,} pictures, {source}")
    for row in rows(plan):
        table.add_row(*row)
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the job."""
    return run(
        PlanJob,
        _show,
        prog="jobs.plan",
        description="Storage and bandwidth of the data of a run, for both ways to condition. Starts nothing.",
        sections=lambda p: {"pipeline": p},
        default_preset="base",
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
