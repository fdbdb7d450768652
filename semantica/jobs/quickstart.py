"""`semantica quickstart`: real pictures through every stage to a report, in one command."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from semantica.config import config
from semantica.distributed.runtime import Runtime
from semantica.jobs.command import Command, shown_command
from semantica.presets import DemoSource, PipelineConfig


@config
class QuickstartJob:
    """The settings of `semantica quickstart`."""

    source: DemoSource = "clip-art"  # pictures that come from the package registries
    root: Path | None = None  # your own folder or HTML tree instead
    out: Path = Path("runs/quickstart")  # folder of everything
    pipeline: Annotated[PipelineConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


COMMAND = Command(
    name="quickstart",
    about="Ingest, encode, pair, train, generate and evaluate in minutes on 2 cores, on pictures that come from the package "
    "registries or on your own. Prints the path of the report. Finished stages are skipped.",
    settings=QuickstartJob,
    sections=lambda p: {"pipeline": p},
    common={
        "root": "your own folder of pictures, or with --preset tiny-html an HTML tree; none: --source",
        "source": "pictures from the package registries; html-docs goes with --preset tiny-html",
        "out": "folder of everything",
        "pipeline.train.num_steps": "steps of the optimizer",
        "pipeline.train.batch_size": "pairs per step",
        "pipeline.generate.num_conditions": "conditioning images to draw from",
        "pipeline.generate.guidance": "the guidance weights w; 0 is none",
        "runtime.cluster.num_cpus": "CPUs of the local Ray; none: all",
        "runtime.tracking.uri": "MLflow server; none: a file in --out, off: no tracking",
        "runtime.fresh": "replace outputs that other settings made",
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""

    def call(job: QuickstartJob) -> None:
        from semantica.distributed.quickstart import quickstart

        started = time.monotonic()
        command = shown_command("quickstart", argv)
        quickstart(job.pipeline, source=job.source, root=job.root, out=job.out, runtime=job.runtime, command=command)
        out = job.out.absolute()
        print(f"\nDone in {time.monotonic() - started:.0f} s.\nReport: {out / 'evaluation' / 'report.html'}")
        if not job.runtime.tracking.uri:
            print(f"MLflow: {Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri sqlite:///{out / 'mlflow.db'}")

    return COMMAND.run(call, argv)
