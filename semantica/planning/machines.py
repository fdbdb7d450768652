"""The settings of a plan: the corpus, the machines, and the user's prices."""

from __future__ import annotations

from semantica.config import config, require


@config
class PriceConfig:
    """The user's prices, in any one currency. 0: free, or not counted. Prices differ too much for defaults."""

    device_hour: float = 0.0  # of one GPU or chip, its host included
    cpu_hour: float = 0.0  # of one core of the machines that ingest and score
    gb_month: float = 0.0  # of storage, for the time of the experiment and keep_months after it
    keep_months: float = 1.0
    egress_gb: float = 0.0  # for the bytes that training reads, when the data lies outside the cluster
    request_million: float = 0.0  # per million requests to an object store

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            require(value >= 0, name, "0 or more", value)


@config
class PlanConfig:
    """The corpus and the machines. Defaults: 32 hosts of 8 H200 each, with 790 dense bf16 TFLOP/s and 141 GB per device."""

    num_images: int = 1_000_000_000
    images_per_page: float = 8.0
    original_kb: float = 100.0  # of an original picture; ingest reads it twice, for the census and to decode it
    num_devices: int = 256
    devices_per_host: int = 8
    devices_per_worker: int = 1  # of training: 1 on GPUs; on TPUs a worker has all chips of its host
    tflops: float = 790.0  # peak of one device
    utilisation: float = 0.4  # share of the peak reached in training, drawing and encoding; recomputation counts as work
    device_gb: float = 141.0
    host_gb: float = 2000.0
    network_gbit: float = 100.0  # of one host, to where the data lies
    disk_tb: float | None = None  # size of the disk for the data; None: an object store, without a limit
    num_cpus: int = 1024  # cores for ingest and pairs
    # Rates per core, measured on an AMD EPYC: benchmarks.decode (three kinds of pictures), benchmarks.pairs (D = 384).
    ingest_pictures_s: float = 60.0
    score_pages_s: float = 30_000.0
    loader_pictures_s: float = 1000.0  # benchmarks.loader, tokens stored
    driver_ms: float = 26.0  # time of a stage's driver per shard (the slower of the two shells in benchmarks.scaling)
    # Measured rates per device. When set, they replace the estimate from FLOPs and utilisation.
    encode_pictures_s: float | None = None
    train_images_s: float | None = None
    prices: PriceConfig = PriceConfig()

    def __post_init__(self) -> None:
        counts = ("num_images", "images_per_page", "num_devices", "devices_per_host", "devices_per_worker", "num_cpus")
        for name in counts:
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        positive = ("original_kb", "tflops", "device_gb", "host_gb", "network_gbit", "ingest_pictures_s", "score_pages_s")
        for name in (*positive, "loader_pictures_s", "driver_ms"):
            require(getattr(self, name) > 0, name, "positive", getattr(self, name))
        for name in ("disk_tb", "encode_pictures_s", "train_images_s"):
            value = getattr(self, name)
            require(value is None or value > 0, name, "positive or None", value)
        require(0 < self.utilisation <= 1, "utilisation", "in (0, 1]", self.utilisation)
        whole = self.num_devices % self.devices_per_worker == 0
        require(whole, "devices_per_worker", f"a divisor of num_devices = {self.num_devices}", self.devices_per_worker)

    @property
    def num_hosts(self) -> int:
        """Machines with devices."""
        return -(-self.num_devices // self.devices_per_host)

    @property
    def num_workers(self) -> int:
        """Workers of a training."""
        return self.num_devices // self.devices_per_worker

    @property
    def flops_s(self) -> float:
        """FLOPs per second of all devices together."""
        return self.num_devices * self.tflops * 1e12 * self.utilisation

    @property
    def network_bytes_s(self) -> float:
        """Bytes per second that all hosts together can read."""
        return self.num_hosts * self.network_gbit * 1e9 / 8
