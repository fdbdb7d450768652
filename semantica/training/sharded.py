"""Tensors of which a worker has its rows only (DTensor), and plain ones, alike: what is here, which rows these are, the whole.

With `fully_shard` worker r of w has the rows that torch.chunk gives it, which are those of `tensor_files.row_range`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


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
