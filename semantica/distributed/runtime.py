"""Where a stage runs and with how many processes. No field here changes a result, so none is part of a dataset's identity."""

from __future__ import annotations

from semantica.config import config, require
from semantica.tracking import TrackingConfig


def device() -> str:
    """The device that this process computes on: "cuda" where there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@config
class ClusterConfig:
    """Ray resources. num_cpus and object_store_mb apply to a local Ray only; with RAY_ADDRESS set, the cluster decides both."""

    num_cpus: int | None = None  # of a local Ray; None: all of this machine
    object_store_mb: int = 512
    num_fetchers: int = 2  # of ingest with fetch_urls; together they keep to the request rate per host
    min_actors: int = 1  # of encode, generate and evaluate: actors to start with
    num_actors: int = 2  # actors to grow to
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    num_workers: int = 2  # of train
    min_workers: int | None = None  # of train: the group may shrink to this number when machines are lost, and grow again later
    resize_every_s: float = 60.0  # with min_workers: how often the group looks for more machines
    cpus_per_worker: float = 1.0
    use_gpu: bool = False  # one GPU per training worker
    tpu_type: str | None = None  # such as "TPU-V6E": train on TPUs by torch-xla, one worker per host
    tpu_topology: str | None = None  # of one slice, such as "4x4"; num_workers is the number of hosts of all slices
    xla_cpu_devices: int | None = None  # train on this number of devices of XLA's CPU client, as on TPUs
    loader_mb: int = 2048  # memory for the row groups of a training worker, so that it reads each of them once
    loader_threads: int = 1  # threads per training worker that decode a batch; with a GPU use several of its cpus_per_worker
    max_failures: int = 3  # of training workers before the job stops; after each, training resumes from the last checkpoint
    # Training restarts (one of max_failures) after this long without a step. Must exceed the first step, which compiles, and the
    # longest sampling.
    stall_s: float = 600.0
    worker_logs: bool = False  # show the output of workers

    def __post_init__(self) -> None:
        for name in ("num_fetchers", "min_actors", "num_actors", "num_workers", "loader_mb", "loader_threads"):
            require(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        require((self.tpu_type is None) == (self.tpu_topology is None), "tpu_topology", "set with tpu_type", self.tpu_topology)
        kinds = [self.use_gpu, self.tpu_type is not None, self.xla_cpu_devices is not None]
        require(sum(kinds) <= 1, "use_gpu", "the only one of use_gpu, tpu_type and xla_cpu_devices that is set", kinds)
        alone = self.xla_cpu_devices is None or (self.xla_cpu_devices >= 1 and self.num_workers == 1)
        require(alone, "xla_cpu_devices", "1 or more, with num_workers = 1", (self.xla_cpu_devices, self.num_workers))
        require(self.min_actors <= self.num_actors, "min_actors", f"at most num_actors = {self.num_actors}", self.min_actors)
        if self.min_workers is not None:
            between = f"in 1..num_workers = {self.num_workers}, or None"
            require(1 <= self.min_workers <= self.num_workers, "min_workers", between, self.min_workers)
        for name in ("resize_every_s", "stall_s"):
            require(getattr(self, name) > 0, name, "positive", getattr(self, name))
        require(self.object_store_mb >= 80, "object_store_mb", "80 or more (Ray's own lower bound)", self.object_store_mb)

    @property
    def use_xla(self) -> bool:
        """Whether training workers run torch-xla."""
        return self.tpu_type is not None or self.xla_cpu_devices is not None


@config
class Runtime:
    """cluster: Ray resources; tracking: MLflow."""

    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    fresh: bool = False  # replace an output that was made with another configuration
    max_damaged_share: float = 0.2  # a stage fails when a larger share of its input (pictures, files, episodes) is damaged

    def __post_init__(self) -> None:
        require(0 <= self.max_damaged_share <= 1, "max_damaged_share", "in 0..1", self.max_damaged_share)
