"""python -m jobs.ingest: `semantica ingest`, as a script to submit."""

import sys
<<<<<<< HEAD
from collections.abc import Sequence
from typing import Annotated

import tyro

from jobs.command import run
from semantica.config import config
from semantica.distributed.ingest import ingest
from semantica.episodes.ingest import IngestConfig
from semantica.runtime import Runtime


@config
class IngestJob:
    """root: the crawl, a folder or a file. out: folder of the episodes. Both may be s3://BUCKET/... or gs://BUCKET/..."""

    root: str
    out: str
    ingest: Annotated[IngestConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the job."""
    return run(
        IngestJob,
        lambda job: ingest(job.ingest, root=job.root, out=job.out, runtime=job.runtime),
        prog="jobs.ingest",
        description="Turn pages with pictures into episodes: decode, clean, resize, split. What is refused goes to quarantine/. "
        "The preset tiny is the demo's, with 64 px pictures; for a crawl take base. The formats: docs/reference/data.md.",
        sections=lambda p: {"ingest": p.ingest},
        argv=argv,
    )
=======
>>>>>>> main

from semantica.jobs.ingest import main

if __name__ == "__main__":
    sys.exit(main())
