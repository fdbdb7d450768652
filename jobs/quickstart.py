"""python -m jobs.quickstart: real pictures through every stage to a report, in one command."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jobs.command import run, shown_command
from semantica.config import config
from semantica.distributed.quickstart import SourceName, quickstart
from semantica.presets import PipelineConfig
from semantica.runtime import Runtime


@config
class QuickstartJob:
    """source: pictures from the package registries. root: your own folder or HTML tree instead. out: folder of everything."""

    source: SourceName = "clip-art"
    root: Path | None = None
    out: Path = Path("runs/quickstart")
    pipeline: Annotated[PipelineConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the job."""

    def call(job: QuickstartJob) -> None:
        started = time.monotonic()
        command = shown_command("jobs.quickstart", argv)
        quickstart(job.pipeline, source=job.source, root=job.root, out=job.out, runtime=job.runtime, command=command)
        out = job.out.absolute()
        print(f"\nDone in {time.monotonic() - started:.0f} s.\nReport: {out / 'evaluation' / 'report.html'}")
        if not job.runtime.tracking.uri:
            print(f"MLflow: {Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri sqlite:///{out / 'mlflow.db'}")

    return run(
        QuickstartJob,
        call,
        prog="jobs.quickstart",
        description="Ingest, encode, pair, train, generate, evaluate. Ends with the path of the report; what is done is skipped.",
        sections=lambda p: {"pipeline": p},
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
