"""What a plan is for: the corpus, the machines, and what the user pays for them."""

from __future__ import annotations

from semantica.config import config, require


@config
class PriceConfig:
    """What the user pays, in any one currency; 0: nothing, or not asked. Spot and contracts differ too much for defaults."""

    device_hour: float = 0.0  # of one GPU or chip, its host included
    cpu_hour: float = 0.0  # of one core of the machines that ingest and score
    gb_month: float = 0.0  # of storage, for as long as the experiment takes and keep_months
    keep_months: float = 1.0
    egress_gb: float = 0.0  # for what training reads, where the data lies elsewhere
    request_million: float = 0.0  # of an object store

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            require(value >= 0, name, "0 or more", value)


@config
class PlanConfig:
    """The corpus and the machines. The defaults are 32 hosts of 8 H200 each: 790 bf16 TFLOP/s, dense, and 141 GB a device."""

    num_images: int = 1_000_000_000
    images_per_page: float = 8.0
    original_kb: float = 100.0  # of a picture as ingest reads it, twice: for the census and to decode it
    num_devices: int = 256
    devices_per_host: int = 8
    devices_per_worker: int = 1  # of training: 1 on GPUs; on TPUs a worker has all chips of its host
    tflops: float = 790.0  # peak of one device
    utilisation: float = 0.4  # of the peak, in training, drawing and encoding, with what is computed again
    device_gb: float = 141.0
    host_gb: float = 2000.0
    network_gbit: float = 100.0  # of one host, to where the data lies
    disk_tb: float | None = None  # where the data lies; None: an object store, which has no end
    num_cpus: int = 1024  # cores for ingest and pairs
    # Of one core, measured on an AMD EPYC: benchmarks.decode (three kinds of pictures), benchmarks.pairs (D = 384).
    ingest_pictures_s: float = 60.0
    score_pages_s: float = 30_000.0
    loader_pictures_s: float = 1000.0  # benchmarks.loader, tokens stored
    driver_ms: float = 26.0  # of the one driver of a stage, for every shard (the worse shell of benchmarks.scaling)
    # Measured rates of one device; they take the place of FLOPs over utilisation.
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
        """What all devices compute in a second."""
        return self.num_devices * self.tflops * 1e12 * self.utilisation

    @property
    def network_bytes_s(self) -> float:
        """What all hosts together read in a second."""
        return self.num_hosts * self.network_gbit * 1e9 / 8
