"""python -m jobs.doctor: what must be right before a stage starts, and what to do where it is not."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from jobs.command import run
from semantica.config import config
from semantica.distributed.doctor import examine
from semantica.doctor.finding import Finding, as_json, as_text, exit_code
from semantica.encoders.settings import EncoderConfig
from semantica.tracking import TrackingConfig


@config
class DoctorJob:
    """out: where a stage would write, a folder or s3://... json: the findings for a program.

    address: of a cluster, HOST:6379 or http://HOST:8265; else RAY_ADDRESS, and without it a local Ray.
    """

    out: str = "runs"
    address: str | None = None
    json: bool = False
    encoder: EncoderConfig
    tracking: TrackingConfig = TrackingConfig()


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the job: 1 when something fails."""
    findings: list[Finding] = []

    def look(job: DoctorJob) -> None:
        address = job.address or os.environ.get("RAY_ADDRESS") or None
        findings.extend(examine(job.out, address, job.encoder, job.tracking))
        print(as_json(findings) if job.json else as_text(findings))

    code = run(
        DoctorJob,
        look,
        prog="jobs.doctor",
        description="Look at versions, devices, ports, authentication, storage, weights, MLflow and the cluster. "
        "A line for each, with what to do; ends with 1 when something fails. Starts nothing and leaves nothing behind.",
        sections=lambda p: {"encoder": p.encode.encoder},
        argv=argv,
    )
    return code or exit_code(findings)


if __name__ == "__main__":
    sys.exit(main())
