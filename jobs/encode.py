"""python -m jobs.encode: episodes -> encodings (tokens and pooled embeddings)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from jobs.command import run
from semantica.config import config
from semantica.data.location import location
from semantica.distributed.encode import encode
from semantica.encoders.encode import EncodeConfig
from semantica.runtime import Runtime


@config
class EncodeJob:
    """episodes: output of jobs.ingest. out: folder of the encodings. Both may be s3://... or gs://..."""

    episodes: str
    out: str
    encode: Annotated[EncodeConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the job."""
    return run(
        EncodeJob,
        lambda job: encode(job.encode, episodes=location(job.episodes), out=location(job.out), runtime=job.runtime),
        prog="jobs.encode",
        description="Encode every picture of the episodes with a frozen pretrained encoder.",
        sections=lambda p: {"encode": p.encode},
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
