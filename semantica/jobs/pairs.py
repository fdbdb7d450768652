"""`semantica pairs`: encodings -> scores (once) -> the selection of a similarity band (a view)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import tyro

from semantica.config import config
from semantica.data.location import location
from semantica.distributed.runtime import Runtime
from semantica.jobs.command import Command
from semantica.pairs.selection import BandConfig


@config
class PairsJob:
    """The settings of `semantica pairs`."""

    encodings: str  # output of `semantica encode`
    out: str  # folder of the selection
    scores: str | None = None  # folder of the scores; None: "scores" beside out
    band: Annotated[BandConfig, tyro.conf.arg(name="")] = BandConfig()
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


COMMAND = Command(
    name="pairs",
    about="Score all pairs of every episode, and select those in a band. Another band reads one small column again.",
    settings=PairsJob,
    sections=lambda p: {"band": p.band},
    common={
        "encodings": "output of `semantica encode`, local or s3://BUCKET/..., gs://BUCKET/...",
        "out": "folder of the selection, local or s3://BUCKET/..., gs://BUCKET/...",
        "scores": "folder of the scores; none: scores, beside the selection",
        "band.low": "least similarity of a pair",
        "band.high": "greatest similarity of a pair",
        "band.score": "the similarity: cosine, or cosine with the mean of the corpus subtracted first",
        "runtime.cluster.num_cpus": "CPUs of a local Ray; none: all",
        "runtime.fresh": "replace an output that other settings made",
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""

    def call(job: PairsJob) -> None:
        from semantica.distributed.pairs import pairs

        scores = location(job.scores) if job.scores else None
        pairs(job.band, encodings=location(job.encodings), out=location(job.out), scores=scores, runtime=job.runtime)

    return COMMAND.run(call, argv)
