"""Where and how wide a stage runs, never what it computes: no field here changes a result, so none enters a dataset's identity."""

from __future__ import annotations

from semantica.config import config, require
from semantica.tracking import TrackingConfig


@config
class ClusterConfig:
    """Ray resources. num_cpus and object_store_mb are for a local Ray only; with RAY_ADDRESS set, the cluster decides."""

    num_cpus: int | None = None
    object_store_mb: int = 512
    num_actors: int = 2
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    num_workers: int = 2
    cpus_per_worker: float = 1.0
    use_gpu: bool = False
    max_failures: int = 3
    worker_logs: bool = False

    def __post_init__(self) -> None:
        for name in ("num_actors", "num_workers"):
            require(getattr(self, name) >= 1, f"cluster.{name}", "1 or more", getattr(self, name))
        require(self.object_store_mb >= 80, "cluster.object_store_mb", "80 or more (Ray's own lower bound)", self.object_store_mb)


@config
class Runtime:
    """cluster: Ray resources; tracking: MLflow; fresh: replace an output that another configuration made."""

    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    fresh: bool = False
