"""The Ray Train backend for torch-xla: one worker per TPU host, which owns all chips of the host (SPMD).

In: a worker group that Ray has placed on the hosts of one or several slices, as ScalingConfig says (`use_tpu`, `topology`,
`accelerator_type`; `tpu_scaling` makes it). Out: workers with the environment of their place, whose processes are one XLA runtime.
A gloo group beside it carries barriers and messages. `semantica.training.xla` lays out weights and batches.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import ray
import torch.distributed
from ray.train import ScalingConfig
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.util.tpu import get_tpu_coordinator_env_vars, get_tpu_worker_resources

from semantica.distributed.ray_private import get_address_and_port
from semantica.errors import ConfigError

_MEGASCALE_PORT = 8081
_log = logging.getLogger(__name__)


@dataclass
class XlaConfig(TorchConfig):  # type: ignore[misc]  # Ray has no types
    """TorchTrainer(..., torch_config=XlaConfig()). Its workers must not call `ray.train.torch.get_device` and `prepare_model`.

    platform: of torch-xla. CPU is XLA's CPU client with num_cpu_devices devices per worker, for tests without a TPU.
    """

    backend: str | None = "gloo"  # not None: Ray would look for torch_tpu on TPU workers
    platform: Literal["TPU", "CPU"] = "TPU"
    num_cpu_devices: int = 1

    @property
    def backend_cls(self) -> type[Backend]:
        return XlaBackend


@dataclass(frozen=True)
class Host:
    """The place of a worker: its slice, its number in the slice as the TPU runtime counts hosts, and its address."""

    slice_name: str
    worker_id: int
    address: str


@dataclass(frozen=True)
class XlaProcess:
    """A worker as XLA counts it: its index, the number of processes, and the number of devices of all of them."""

    process: int
    num_processes: int
    num_devices: int


class XlaBackend(Backend):  # type: ignore[misc]
    """Starts the workers of a group as one XLA runtime, and ends it."""

    def on_start(self, worker_group: Any, backend_config: XlaConfig) -> None:
        world = len(worker_group)
        hosts: list[Host] = worker_group.execute(_where)
        tpu = backend_config.platform == "TPU"
        address, port = worker_group.execute_single(0, get_address_and_port)
        slices = slice_environments(hosts) if tpu else [{} for _ in hosts]
        started = []
        for rank, environment in enumerate(slices):
            environment = environment | {"MASTER_ADDR": address, "MASTER_PORT": str(port), "PJRT_DEVICE": backend_config.platform}
            if not tpu:
                environment["CPU_NUM_DEVICES"] = str(backend_config.num_cpu_devices)
            arguments = (environment, rank, world, backend_config.timeout_s)
            started.append(worker_group.execute_single_async(rank, _start, *arguments))
        seen: list[XlaProcess] = ray.get(started)
        if tpu:
            check_processes(seen)
        _log.info("XLA runs on %d hosts with %d devices", world, sum(s.num_devices for s in seen) // seen[0].num_processes)

    def on_shutdown(self, worker_group: Any, backend_config: XlaConfig) -> None:
        worker_group.execute(_stop)


def tpu_scaling(num_workers: int, accelerator_type: str, topology: str, cpus_per_worker: float) -> ScalingConfig:
    """The ScalingConfig of `num_workers` TPU hosts, one worker per host, in as many slices of the topology as they fill.

    Raises ConfigError when the hosts do not fill whole slices, or when Ray does not know the slice.
    """
    try:
        hosts, resources = get_tpu_worker_resources(
            topology=topology, accelerator_type=accelerator_type, resources_per_worker={"CPU": cpus_per_worker}
        )
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"cluster.tpu_topology: {topology} of {accelerator_type} is no slice that Ray knows ({error})") from None
    if num_workers % hosts:
        raise ConfigError(
            f"cluster.num_workers must be a multiple of {hosts}, the hosts of a {topology} slice of {accelerator_type}, "
            f"got {num_workers}"
        )
    return ScalingConfig(
        num_workers=num_workers,
        use_tpu=True,
        topology=topology,
        accelerator_type=accelerator_type,
        resources_per_worker=resources,
    )


def slice_environments(hosts: Sequence[Host]) -> list[dict[str, str]]:
    """The environment of each worker's TPU runtime, in the order of the workers. It names the slice when there are several slices.

    Ray's ranks say nothing about a host's place, so each node reports its own place. The rest of a slice's environment is set on
    the node already (by GCE's metadata server or GKE's webhook). Raises ConfigError when two workers share a host, since one
    process drives all chips of a host.
    """
    places = [(host.slice_name, host.worker_id) for host in hosts]
    if len(set(places)) < len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise ConfigError(
            f"cluster.num_workers: one worker per TPU host is expected, got two on host {twice[1]} of slice {twice[0]!r}"
        )
    slices = sorted({host.slice_name for host in hosts})
    if len(slices) == 1:
        return [{} for _ in hosts]
    first = min(hosts, key=lambda host: (host.slice_name, host.worker_id))
    return [
        dict(
            get_tpu_coordinator_env_vars(
                coordinator_address=f"{first.address}:{_MEGASCALE_PORT}",
                num_slices=len(slices),
                slice_id=slices.index(host.slice_name),
                coordinator_port=str(_MEGASCALE_PORT),
            )
        )
        for host in hosts
    ]


def check_processes(seen: Sequence[XlaProcess]) -> None:
    """Raise ConfigError unless the workers' XLA processes are one runtime: each index once, and the same count in all."""
    if sorted(s.process for s in seen) != list(range(len(seen))) or any(s.num_processes != len(seen) for s in seen):
        raise ConfigError(
            f"cluster.num_workers: XLA must see {len(seen)} processes, one per TPU host, got "
            f"{[(s.process, s.num_processes) for s in seen]} (index, count); the workers must be all hosts of whole slices, and "
            "TPU_WORKER_HOSTNAMES of a host must name those of its slice"
        )


def _where() -> Host:
    labels: Mapping[str, str] = ray.get_runtime_context().get_node_labels()
    name = labels.get("ray.io/tpu-slice-name") or os.environ.get("TPU_NAME", "")
    number = labels.get("ray.io/tpu-worker-id") or os.environ.get("TPU_WORKER_ID", "0")
    return Host(name, int(number), ray.util.get_node_ip_address())


def _start(environment: Mapping[str, str], rank: int, world: int, timeout_s: int) -> XlaProcess:
    # Replaces the environment that an earlier group left: the slice may have been replaced by another one.
    os.environ.update(environment)
    import torch_xla.runtime as xr

    xr.use_spmd()  # before any XLA device is asked for
    torch.distributed.init_process_group("gloo", "env://", rank=rank, world_size=world, timeout=timedelta(seconds=timeout_s))
    return XlaProcess(xr.process_index(), xr.process_count(), xr.global_runtime_device_count())


def _stop() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
