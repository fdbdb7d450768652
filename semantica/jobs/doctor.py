"""`semantica doctor`: what must be right before a stage starts, and what to do where it is not."""

from __future__ import annotations

import os
from collections.abc import Sequence

from semantica.config import config
from semantica.encoders.settings import EncoderConfig
from semantica.jobs.command import Command
from semantica.tracking import TrackingConfig


@config
class DoctorJob:
    """The settings of `semantica doctor`."""

    out: str = "runs"  # where a stage would write, a folder or s3://BUCKET/...
    address: str | None = None  # of a cluster, HOST:6379 or http://HOST:8265; None: RAY_ADDRESS, and without it a local Ray
    json: bool = False  # print the findings as JSON
    encoder: EncoderConfig
    tracking: TrackingConfig = TrackingConfig()


COMMAND = Command(
    name="doctor",
    about="Look at versions, devices, ports, authentication, storage, weights, MLflow and the cluster. Prints one line per check, "
    "with what to do; ends with 1 when a check fails. Starts nothing and leaves nothing behind.",
    settings=DoctorJob,
    sections=lambda p: {"encoder": p.encode.encoder},
    common={
        "out": "where a stage would write, a folder or s3://BUCKET/...",
        "address": "of a cluster, HOST:6379 or http://HOST:8265; none: RAY_ADDRESS, and without it a local Ray",
        "encoder.weights": "encoder whose weights are looked for",
        "tracking.uri": "MLflow server; none: a file in --out, off: no tracking",
        "json": "print the findings as JSON",
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command: 1 when a check fails."""

    def call(job: DoctorJob) -> int:
        from semantica.distributed.doctor import examine
        from semantica.doctor.finding import as_json, as_text, exit_code

        address = job.address or os.environ.get("RAY_ADDRESS") or None
        findings = examine(job.out, address, job.encoder, job.tracking)
        print(as_json(findings) if job.json else as_text(findings))
        return exit_code(findings)

    return COMMAND.run(call, argv)
