"""One stage of the data plane on a cluster of three nodes while something is killed. A script: `test_data_faults.py` runs it.

python data_chaos.py '{"stage": ..., "kill": "worker" | "node", "times": n, "settings": {...}}'. The last line it prints is JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from semantica.config import from_dict
from semantica.data.dataset import Manifest
from semantica.distributed.encode import encode
from semantica.distributed.ingest import ingest
from semantica.distributed.pairs import score
from semantica.distributed.runtime import ClusterConfig, Runtime
from semantica.encoders.settings import EncodeConfig
from semantica.episodes.ingest import IngestConfig
from semantica.tracking import TrackingConfig

HEAD = {"object_store_memory": 80 * 2**20, "include_dashboard": False, "no_monitor": True}  # neither is asked anything


class Killer(threading.Thread):
    """Kills `times` workers or nodes while receipts appear in `out`, each after further receipts; `killed` says what and when."""

    def __init__(self, kill: str, times: int, out: Path, nodes: list[Any], cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self.kill, self.times, self.out, self.nodes, self.cluster = kill, times, out, nodes, cluster
        self.killed: list[dict[str, Any]] = []

    def run(self) -> None:
        wanted = 1
        while len(self.killed) < self.times:
            time.sleep(0.005)
            receipts = len(list(self.out.glob("_shards/*.json")))
            if receipts < wanted:
                continue
            if (what := self._kill_node() if self.kill == "node" else self._kill_worker()) is not None:
                self.killed.append({"what": what, "receipts": receipts})
                wanted = receipts + 2

    def _kill_worker(self) -> str | None:
        for process in psutil.process_iter(["cmdline"]):
            name = (process.info["cmdline"] or [""])[0]
            if name.startswith("ray::") and "Map" in name and self._is_ours(process):  # a task or an actor of a stage, at work
                process.kill()
                return name
        return None

    @staticmethod
    def _is_ours(process: psutil.Process) -> bool:
        """Whether it logs into the folder of this Ray; there may be others on the machine."""
        session = ray._private.worker._global_node.get_session_dir_path()
        with suppress(psutil.Error):
            return any(file.path.startswith(session) for file in process.open_files())
        return False

    def _kill_node(self) -> str:
        node = self.nodes.pop()
        self.cluster.remove_node(node, allow_graceful=False)
        return "node"


def run_stage(stage: str, settings: dict[str, Any], paths: dict[str, str], runtime: Runtime) -> Manifest:
    """The stage by name."""
    out = Path(paths["out"])
    if stage == "ingest":
        return ingest(from_dict(IngestConfig, settings), root=Path(paths["input"]), out=out, runtime=runtime)
    if stage == "encode":
        return encode(from_dict(EncodeConfig, settings), episodes=Path(paths["input"]), out=out, runtime=runtime)
    return score(encodings=Path(paths["input"]), out=out, runtime=runtime)


def main() -> None:
    """Run the stage once under fire."""
    job = json.loads(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args=HEAD | {"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2)]
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    killer = Killer(job["kill"], job["times"], Path(job["paths"]["out"]), nodes, cluster)
    killer.start()
    runtime = Runtime(cluster=ClusterConfig(num_actors=2, cpus_per_actor=1.0), tracking=TrackingConfig(uri="off"))
    manifest = run_stage(job["stage"], job["settings"], job["paths"], runtime)
    print(
        json.dumps(
            {"killed": killer.killed, "hash": manifest.hash, "shards": len(list(Path(job["paths"]["out"]).glob("_shards/*")))}
        )
    )
    sys.stdout.flush()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
