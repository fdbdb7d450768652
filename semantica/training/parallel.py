"""How several workers train one network: each with all of it (DDP), or with its rows (FSDP2), of one copy or several (HSDP).

In: the network, the same on every worker, and torch.distributed's default process group, gloo on CPUs and NCCL on GPUs. Out: the
module that the loop calls; which rows of the state a worker has and writes; what it takes of memory. The gradients are averaged
over all workers in every kind, so that a step is the same step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from semantica.denoiser.configs import DenoiserConfig
from semantica.denoiser.uvit import UViT
from semantica.training.compute import shard_units
from semantica.training.recipe import ComputeConfig

_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Sharing:
    """Which part of the state a worker has: the rows of worker `rank` of `world` that share one copy. replica: which copy.

    Copy 0 is the one that is written to checkpoints.
    """

    rank: int
    world: int
    replica: int


def sharing(compute: ComputeConfig, rank: int, world: int) -> Sharing:
    """What worker `rank` of all `world` workers has. Workers that follow each other share a copy: those of one machine do."""
    compute.check_workers(world)
    together = {"ddp": 1, "fsdp": world, "hsdp": compute.shard_workers or world}[compute.parallel]
    return Sharing(rank % together, together, rank // together)


def row_range(rows: int, rank: int, world: int) -> tuple[int, int]:
    """[start, stop) of the rows of worker `rank`: those of torch.chunk, which FSDP2's Shard(0) gives it. The last may have none."""
    size = -(-rows // world)
    return min(rank * size, rows), min((rank + 1) * size, rows)


def local(tensor: Tensor) -> Tensor:
    """What this worker has of a tensor, in its own memory: under no_grad, what is written there is written to the tensor."""
    here: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return here


def place(tensor: Tensor) -> tuple[int, int]:
    """(rank, world): this worker has the rows of worker `rank` of `world`. (0, 1) when it has all of them."""
    if not isinstance(tensor, DTensor):
        return 0, 1
    split = [dim for dim, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    if not split:
        return 0, 1
    if len(split) > 1 or tensor.placements[split[0]] != Shard(0):
        raise ValueError(f"tensor must be split by rows over one dimension of the mesh, got {tensor.placements}")
    return tensor.device_mesh.get_local_rank(split[0]), tensor.device_mesh.size(split[0])


@torch.no_grad()
def whole(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """All rows of every tensor, gathered one tensor after the other. All workers must call it; without `keep` a worker gets none.

    What was gathered is on the CPU, so that a GPU never holds more than one; plain tensors are given back as they are.
    """
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        if keep:
            made[name] = full
    return made


def wrap(network: UViT, compute: ComputeConfig, device: torch.device | str) -> nn.Module:
    """The module whose backward pass averages the gradients over all workers; without a process group, the network itself.

    The network is on the device and prepared. With sharded weights it is the module that comes back, and its parameters are new
    ones: optimizer and EMA are made after this. No worker is asked for its weights: all have drawn the same, and keep their rows.
    """
    kind = torch.device(device)
    if kind.type == "cuda" and kind.index is not None:
        torch.cuda.set_device(kind)  # where NCCL and the mesh allocate
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world == 1:
        return network
    if not compute.is_sharded:
        # DDP orders its buckets anew in the second step of a group, and the order of a sum over more than two workers depends on
        # that: the first step after a restart would differ in the last bit. With this it keeps the order.
        keeps = world > 2
        return DistributedDataParallel(network, device_ids=[kind] if kind.type == "cuda" else None, find_unused_parameters=keeps)
    together = sharing(compute, dist.get_rank(), world).world
    shape, names = ((world,), ("shard",)) if together == world else ((world // together, together), ("replicate", "shard"))
    mesh = init_device_mesh(kind.type, shape, mesh_dim_names=names)
    # float32 throughout, as in DDP: weights are gathered and gradients averaged in it, and autocast rounds what enters a product.
    # MixedPrecisionPolicy(param_dtype=bfloat16) would halve the traffic and round gains and biases too, which DDP does not.
    for block in shard_units(network):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # The rest is needed at both ends of a pass: let go after the forward pass, it would be gathered again at once.
    fully_shard(network, mesh=mesh, reshard_after_forward=False)
    return network


@dataclass(frozen=True)
class StateBytes:
    """Bytes of the worker that has most. gradients: with DDP twice, since it averages them in buckets of its own. gathered: what is
    whole while a step runs, weights and gradients of the network's rest and of two blocks, the one that computes and the one that
    comes next; 0 where everything is whole anyway.
    """

    weights: int
    gradients: int
    moments: int
    ema: int
    gathered: int

    @property
    def total(self) -> int:
        """All of them; activations and the batch come on top."""
        return self.weights + self.gradients + self.moments + self.ema + self.gathered


def state_bytes(denoiser: DenoiserConfig, compute: ComputeConfig, world: int) -> StateBytes:
    """What training's state takes of a worker's memory, computed from the shapes of the weights."""
    with torch.device("meta"):
        network = UViT(denoiser)
    together = sharing(compute, 0, world).world
    rows = sum(row_range(len(p), 0, together)[1] * (p.numel() // len(p)) for p in network.parameters()) * _FLOAT
    gradients, gathered = rows, 0
    if together == 1 and world > 1:
        gradients = 2 * rows
    if together > 1:
        blocks = [_FLOAT * sum(p.numel() for p in block.parameters()) for block in shard_units(network)]
        rest = _FLOAT * sum(p.numel() for p in network.parameters()) - sum(blocks)
        pairs = [sum(blocks[i : i + 2]) for i in range(max(1, len(blocks) - 1))]
        gathered = 2 * (rest + max(pairs))
    return StateBytes(weights=rows, gradients=gradients, moments=2 * rows, ema=rows, gathered=gathered)
