"""python -m jobs.pairs: encodings -> scores (once) -> the selection of a similarity band (a view)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from jobs.command import run
from semantica.config import config
from semantica.data.location import location
from semantica.distributed.pairs import pairs
from semantica.pairs.selection import BandConfig
from semantica.runtime import Runtime


@config
class PairsJob:
    """encodings: output of jobs.encode. out: folder of the selection. scores: made beside out when not given.

    All may be s3://... or gs://...
    """

    encodings: str
    out: str
    scores: str | None = None
    band: Annotated[BandConfig, tyro.conf.arg(name="")] = BandConfig()
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the job."""
    return run(
        PairsJob,
        lambda job: pairs(
            job.band,
            encodings=location(job.encodings),
            out=location(job.out),
            scores=location(job.scores) if job.scores else None,
            runtime=job.runtime,
        ),
        prog="jobs.pairs",
        description="Score all pairs of every episode and select those in a band. Another band re-reads one small column.",
        sections=lambda p: {"band": p.band},
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
