"""One local Ray for all tests of shells and jobs, and one small run of every stage."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from small import SmallRun, draw_pages, random_encoder, run_stages, small_config
from warm_workers import warm_workers

from semantica.distributed.runtime import ClusterConfig, Runtime
from semantica.distributed.session import ray_session
from semantica.tracking import TrackingConfig

# How often Ray Train looks at its workers: the default of two seconds is most of a run of six steps.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


@pytest.fixture(scope="session")
def warm(request: pytest.FixtureRequest, s3: str) -> Iterator[None]:
    """Workers of every Ray are forked from one that has imported all, but in a run of the slow tests."""
    with ExitStack() as stack:
        if "not slow" in request.config.getoption("markexpr"):
            stack.enter_context(warm_workers(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="warm-")))))
        yield


@pytest.fixture(scope="session")
def local_ray(s3: str, warm: None) -> Iterator[None]:
    """A Ray of two CPUs that every test shares; its workers know the S3 server of the tests."""
    with ray_session(ClusterConfig(num_cpus=2, object_store_mb=128)):
        yield


@pytest.fixture(scope="session")
def small_run(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """Every stage, run once."""
    base = tmp_path_factory.mktemp("small")
    root, out = draw_pages(base / "pictures"), base / "run"
    config = small_config(random_encoder(base / "encoder"))
    runtime = Runtime(
        cluster=ClusterConfig(num_actors=1, num_workers=2, cpus_per_worker=0.5, max_failures=1),
        tracking=TrackingConfig(uri=f"sqlite:///{out}/mlflow.db"),
    )
    out.mkdir()
    run_stages(config, root, out, runtime)
    return SmallRun(out, root, config, runtime)
