"""`semantica plan`: what an experiment computes, holds, stores, reads, takes and costs, and what of it does not fit."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from typing import Annotated

import tyro

from semantica.config import config
from semantica.jobs.command import Command
from semantica.planning.machines import PlanConfig
from semantica.presets import PipelineConfig


@config
class PlanJob:
    """The settings of `semantica plan`."""

    plan: Annotated[PlanConfig, tyro.conf.arg(name="")] = PlanConfig()
    episodes: str | None = None  # output of `semantica ingest` on a sample, to measure instead of estimating
    scores: str | None = None  # scores of `semantica pairs` on a sample, to measure instead of estimating
    json: bool = False  # print every figure as JSON
    pipeline: Annotated[PipelineConfig, tyro.conf.arg(name="")]


COMMAND = Command(
    name="plan",
    about="Parameters, FLOPs, memory, storage, bandwidth, hours and cost of every stage, before anything is started.",
    settings=PlanJob,
    sections=lambda p: {"pipeline": p},
    common={
        "plan.num_images": "pictures of the crawl",
        "plan.images_per_page": "pictures per page",
        "plan.num_devices": "GPUs or chips",
        "plan.devices_per_host": "devices per machine",
        "plan.tflops": "peak of one device",
        "plan.utilisation": "share of the peak that is reached",
        "plan.device_gb": "memory of one device",
        "plan.num_cpus": "cores for ingest and pairs",
        "plan.disk_tb": "size of the disk; none: an object store",
        "plan.prices.device_hour": "price of one device for an hour, in any currency",
        "episodes": "output of `semantica ingest` on a sample, to measure instead of estimating",
        "scores": "scores of `semantica pairs` on a sample, to measure instead of estimating",
        "pipeline.train.num_steps": "steps of the optimizer",
        "pipeline.train.batch_size": "pairs per step, over all workers",
        "json": "print every figure as JSON",
    },
    default_preset="base",
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""

    def call(job: PlanJob) -> None:
        from rich.console import Console

        from semantica.data.dataset import read_manifest
        from semantica.data.location import location
        from semantica.planning.pairs import page_counts
        from semantica.planning.plan import make_plan
        from semantica.planning.tables import show

        episodes = read_manifest(location(job.episodes), "episodes") if job.episodes else None
        sample = page_counts(location(job.scores), job.pipeline.band) if job.scores else None
        plan = make_plan(job.pipeline, job.plan, episodes, sample)
        if job.json:
            print(json_format.dumps(plan.to_dict(), indent=1))
        else:
            show(plan, Console())

    return COMMAND.run(call, argv)
