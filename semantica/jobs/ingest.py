"""`semantica ingest`: a crawl of pages with pictures -> episodes, held-out episodes, quarantine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import tyro

from semantica.config import config
from semantica.data.location import location
from semantica.distributed.runtime import Runtime
from semantica.episodes.ingest import IngestConfig
from semantica.jobs.command import Command


@config
class IngestJob:
    """The settings of `semantica ingest`."""

    root: str  # the crawl: a folder or a file, or s3://BUCKET/..., gs://BUCKET/...
    out: str  # folder of the episodes, or s3://BUCKET/..., gs://BUCKET/...
    ingest: Annotated[IngestConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


COMMAND = Command(
    name="ingest",
    about="Turn pages with pictures into episodes: decode, clean, resize, split. Pictures that are refused go to quarantine/. "
    "The preset tiny makes the demo's 64 px pictures; for a crawl use base. Formats: docs/reference/data.md.",
    settings=IngestJob,
    sections=lambda p: {"ingest": p.ingest},
    common={
        "root": "the crawl: a folder or a file, local or s3://BUCKET/..., gs://BUCKET/...",
        "out": "folder of the episodes, local or s3://BUCKET/..., gs://BUCKET/...",
        "ingest.source": "format of the crawl",
        "ingest.image.image_px": "side of the stored square pictures",
        "ingest.image.min_side_px": "smaller pictures are refused",
        "ingest.split_by": "what is held out for evaluation: whole pages, or single pictures",
        "ingest.held_out_share": "share that is held out; 1 keeps nothing to train on",
        "ingest.min_images": "pictures that a page must have to train on it",
        "ingest.fetch_urls": "fetch pictures that the crawl only names, from the web",
        "ingest.fetch.contact": "your URL or mail address, which hosts see when pictures are fetched",
        "runtime.cluster.num_cpus": "CPUs of a local Ray; none: all",
        "runtime.fresh": "replace an output that other settings made",
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""

    def call(job: IngestJob) -> None:
        from semantica.distributed.ingest import ingest

        ingest(job.ingest, root=location(job.root), out=location(job.out), runtime=job.runtime)

    return COMMAND.run(call, argv)
