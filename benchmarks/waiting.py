"""A simulated cluster on this machine, and a stage whose shards wait instead of computing: what benchmarks.scaling measures with.

Apart from it because its workers import this module: it brings no torch, whose import would cost every worker seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semantica.data.dataset import Manifest, StageOutput

STORE_MB = 80


class Nodes:
    """A head without CPUs and nodes with one each, all of them processes of this machine; nodes may go, and none comes.

    From many to few, since what a worker imports takes seconds of the cores that all share: it is there before the first figure.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._cluster: Any = None
        self._nodes: list[Any] = []

    def __enter__(self) -> Nodes:
        import ray
        from ray.cluster_utils import Cluster

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = "1"
        store = {"object_store_memory": STORE_MB * 2**20}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **store})
        self._nodes = [self._cluster.add_node(num_cpus=1, wait=False, **store) for _ in range(self.number)]
        self._cluster.wait_for_nodes()
        ray.init(address=self._cluster.address, logging_level="ERROR", log_to_driver=False)
        return self

    def shrink(self, number: int) -> None:
        """Take nodes away until so many are left."""
        import ray

        while self.number > number:
            self._cluster.remove_node(self._nodes.pop())
            self.number -= 1
        while ray.cluster_resources().get("CPU") != number:
            time.sleep(0.1)

    def __exit__(self, *details: object) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()


class WaitingShard:
    """A stage's worker whose work is to wait; it writes a shard and says on which node."""

    def __init__(self, stage: StageOutput, seconds: float) -> None:
        self.stage, self.seconds = stage, seconds

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        import pyarrow as pa
        import ray

        time.sleep(self.seconds)
        self.stage.write_shard(shard["name"], {"": pa.table({"number": [shard["number"]]})}, {"num": 1})
        return {"name": shard["name"], "node": ray.get_runtime_context().get_node_id()}


@dataclass(frozen=True)
class Waited:
    """How a stage of waiting went: its manifest, the nodes that did shards, the speed from when all of them had done one, and the
    seconds until then.
    """

    manifest: Manifest
    nodes: frozenset[str]
    shards_s: float
    joined_s: float


def wait_stage(folder: Path, num_shards: int, seconds: float, num_nodes: int, *, in_pool: bool) -> Waited:
    """Run a stage of waiting shards on the Ray that runs. in_pool: by actors, one a node, as encode does; else by tasks."""
    from semantica.distributed.runtime import ClusterConfig
    from semantica.distributed.stage import Pass, through_ray

    stage = StageOutput(folder, "waiting", {"num_shards": num_shards})
    stage.open()
    shards = [{"name": f"part-{number:05d}", "number": number} for number in range(num_shards)]
    started, nodes = time.time(), dict[str, str]()  # by shard
    cluster = ClusterConfig(num_actors=num_nodes, min_actors=num_nodes, num_workers=1)
    for result in through_ray(Pass(worker=WaitingShard, arguments=(stage, seconds), shards=shards, pool=in_pool), cluster):
        nodes[result["name"]] = result["node"]
    done = receipts(folder)
    joined = max(min(time for name, time in done.items() if nodes[name] == node) for node in set(nodes.values()))
    manifest = stage.finish({"num_shards": num_shards}, {})
    return Waited(manifest, frozenset(nodes.values()), speed(done, joined), joined - started)


def receipts(folder: Path) -> dict[str, float]:
    """When each shard was done, by the clock of the file system."""
    return {path.name.split(".")[0]: path.stat().st_mtime for path in (folder / "_shards").glob("*.json")}


def speed(done: Mapping[str, float], since: float | None = None) -> float:
    """Shards a second after `since`, or after the first third of them."""
    times = sorted(done.values())
    since = times[len(times) // 3 - 1] if since is None else since
    return sum(time > since for time in times) / max(1e-9, times[-1] - since)
