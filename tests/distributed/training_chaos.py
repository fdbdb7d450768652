"""One training while something is killed. A script: `test_training_faults.py` runs it.

python training_chaos.py '{"job": {...}, "record": FOLDER, "step_s": s, "kill": [what, ...], "at": [step, ...]}'. With "kill" it
runs on a cluster of its own, and the last line it prints is JSON; without, it is the command `semantica train` on its own Ray.
What is killed: "worker" by SIGKILL, "stop" by SIGSTOP, "node" or "nodes" (two at once), which others replace, "drain" (a node
that is told before), "shrink" (a node, which is replaced later). Workers write down what they train on: RECORD/PID.jsonl, and
RECORD/at-RANK for where they are.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray.cluster_utils import Cluster

import semantica.distributed.train as shell
from semantica.config import from_dict
from semantica.data.location import location
from semantica.jobs.train import TrainJob
from semantica.jobs.train import main as train_command
from semantica.training.start import open_inputs

HEAD = {"object_store_memory": 80 * 2**20, "include_dashboard": False, "no_monitor": True}  # neither is asked anything


def recorded(folder: str, step_s: float) -> Callable[[Any], None]:
    """`train_on_worker`, of which every step is written down and takes `step_s` more."""

    def worker(job: Any) -> None:
        import hashlib

        import semantica.training.loop as loop
        from semantica.distributed.worker import train_on_worker

        context = ray.train.get_context()
        rank, world = context.get_world_rank(), context.get_world_size()
        node, lines = ray.get_runtime_context().get_node_id(), Path(folder, f"{os.getpid()}.jsonl")
        inner = loop.add_gradients

        def add_gradients(wrapped: Any, batch: Any, noise: Any, step: int, config: Any) -> Any:
            slots = [
                (
                    slot,
                    hashlib.sha256(b"".join(tensor[row].numpy().tobytes() for tensor in (batch.x, batch.cond.tokens, noise.eps))),
                )
                for row, slot in enumerate(batch.slots)
            ]
            with lines.open("a") as file:
                said = {"step": step, "rank": rank, "world": world, "slots": {slot: digest.hexdigest() for slot, digest in slots}}
                file.write(json.dumps(said) + "\n")
            place = Path(folder, f"at-{rank}")
            place.with_suffix(".new").write_text(f"{step} {os.getpid()} {node}")
            place.with_suffix(".new").rename(place)
            time.sleep(step_s)
            return inner(wrapped, batch, noise, step, config)

        loop.add_gradients = add_gradients
        train_on_worker(job)

    return worker


class Chaos:
    """Kills at each of the steps `at`; `killed` says what, where and after how many seconds the training was at work again."""

    def __init__(self, job: dict[str, Any], cluster: Cluster, nodes: list[Any]) -> None:
        self.kills, self.record, self.cluster, self.nodes = list(job["kill"]), Path(job["record"]), cluster, nodes
        self.checkpoints = Path(job["job"]["out"], "checkpoints")
        self.at, self.chance = list(job["at"]), random.Random(0)
        self.step_s = job["step_s"]
        self.killed: list[dict[str, Any]] = []

    def places(self) -> dict[int, tuple[int, int, str]]:
        """{rank: (step, process, node)} of the workers that made a step."""
        found = {}
        for rank in (0, 1):
            path = self.record / f"at-{rank}"
            if path.exists():
                step, process, node = path.read_text().split()
                found[rank] = (int(step), int(process), node)
        return found

    def run(self, is_over: Callable[[], bool]) -> None:
        """Kill, until all is killed that is to be killed or the training is over."""
        for kill, step in zip(self.kills, self.at, strict=True):
            before = {process for _, process, _ in self.places().values()} if self.killed else set()
            while not self._at_work(step, before):
                if is_over():
                    return
                time.sleep(0.002)
            time.sleep(self.chance.uniform(0, self.step_s))
            if len(self.killed) % 2 == 0:
                self._wait_for_a_save()
            self.killed.append({"step": step, "saving": self._saving(), **self._strike(kill)})

    def _at_work(self, step: int, before: set[int]) -> bool:
        """True when a group of two that is another one than `before` is at `step` or later."""
        places = self.places()
        alive = len(places) == 2 and all(psutil.pid_exists(process) for _, process, _ in places.values())
        return alive and all(process not in before for _, process, _ in places.values()) and places[0][0] >= step

    def _saving(self) -> bool:
        return any(self.checkpoints.glob(".step-*.partial"))

    def _wait_for_a_save(self) -> None:
        deadline = time.monotonic() + 1
        while not self._saving() and time.monotonic() < deadline:
            time.sleep(0.001)

    def _strike(self, kill: str) -> dict[str, Any]:
        places = self.places()
        rank = self.chance.choice([0, 1])
        if kill in ("node", "drain", "shrink"):
            return getattr(self, f"_{kill}")([places[rank][2]])
        if kill == "nodes":
            return self._node([place[2] for place in places.values()])
        number = signal.SIGSTOP if kill == "stop" else signal.SIGKILL
        os.kill(places[rank][1], number)  # raises when there is no such process
        return {"rank": rank, "process": places[rank][1], "signal": int(number)}

    def _remove(self, ids: list[str]) -> int:
        struck = [node for node in self.nodes if node.node_id in ids]
        for node in struck:
            self.nodes.remove(node)
            self.cluster.remove_node(node, allow_graceful=False)
        return len(struck)

    def _node(self, ids: list[str]) -> dict[str, Any]:
        count = self._remove(ids)
        for _ in range(count):
            self.nodes.append(add_node(self.cluster))
        return {"nodes": count}

    def _drain(self, ids: list[str]) -> dict[str, Any]:
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        end = time.time() + 8
        accepted, why = GcsClient(address=self.cluster.address).drain_node(ids[0], reason, "taken away", int(end * 1000))
        time.sleep(max(0.0, end - time.time()))
        return {"accepted": accepted, "why": why, **self._node(ids)}

    def _shrink(self, ids: list[str]) -> dict[str, Any]:
        count, struck_at = self._remove(ids), max(step for step, *_ in self.places().values())
        while self._alone() < struck_at + 3:
            time.sleep(0.05)
        self.nodes.append(add_node(self.cluster))
        return {"nodes": count}

    def _alone(self) -> int:
        """The step at which a group of one worker is; -1 when there is none."""
        said = [json.loads(path.read_text().splitlines()[-1]) for path in self.record.glob("*.jsonl")]
        return max((line["step"] for line in said if line["world"] == 1), default=-1)


def add_node(cluster: Cluster) -> Any:
    """A node with room for one worker."""
    return cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)


def on_a_cluster(job: dict[str, Any]) -> None:
    """Train on a cluster under fire; nodes can be added on the main thread alone, so the training has another one."""
    cluster = Cluster(initialize_head=True, head_node_args=HEAD | {"num_cpus": 0})
    spare = {"node": 1, "nodes": 2, "drain": 1}
    nodes = [add_node(cluster) for _ in range(2 + max(spare.get(kill, 0) for kill in job["kill"]))]
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    values, failed = from_dict(TrainJob, job["job"]), []

    def training() -> None:
        try:
            shell.train(
                values.train,
                open_inputs(values.train, location(values.encodings), location(values.selection)),
                out=values.out,
                runtime=values.runtime,
            )
        except BaseException as error:
            failed.append(repr(error))
            raise

    thread = threading.Thread(target=training)
    thread.start()
    chaos = Chaos(job, cluster, nodes)
    chaos.run(lambda: not thread.is_alive())
    thread.join()
    print(json.dumps({"killed": chaos.killed, "failed": failed}))
    sys.stdout.flush()
    ray.shutdown()
    cluster.shutdown()


def main() -> int:
    """Run the training once."""
    job = json.loads(sys.argv[1])
    Path(job["record"]).mkdir(parents=True, exist_ok=True)
    shell.train_on_worker = recorded(job["record"], job["step_s"])
    if "kill" in job:
        on_a_cluster(job)
        return 0
    path = Path(job["record"], "job.yaml")
    path.write_text(yaml.safe_dump(job["job"]))
    return train_command(["--config", str(path)])


if __name__ == "__main__":
    sys.exit(main())
