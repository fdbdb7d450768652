"""A copy of a training's tensors in host memory: what a save costs the training. From there they are written while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semantica.training.tensor_files import Piece, share


@dataclass(frozen=True)
class Snapshot:
    """What worker `rank` of `world` writes of a training after `step` steps. Nothing in it changes while the training goes on.

    pieces: kind -> name -> rows, on the CPU. described: the content of config.json.
    """

    step: int
    pieces: Mapping[str, Mapping[str, Piece]]
    described: Mapping[str, Any]
    rank: int = 0
    world: int = 1


class HostMemory:
    """Memory that one snapshot after the other is copied to: the pages are there already, and pinned when they come from a GPU.

    It holds as many bytes as a checkpoint has, for as long as the training runs.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def copy(self, key: str, tensor: Tensor) -> Tensor:
        """The values of a tensor, contiguous, in the memory held under the key. From a GPU they arrive by the next synchronize."""
        held = self._held.get(key)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._held[key] = held
        return held.copy_(tensor.detach(), non_blocking=True)


def copied(tensors: Mapping[str, Mapping[str, Tensor]], memory: HostMemory, rank: int, world: int) -> dict[str, dict[str, Piece]]:
    """The rows of worker `rank` of every kind of tensors, in host memory. All values are there when this returns."""
    pieces: dict[str, dict[str, Piece]] = {}
    on_gpu = False
    with torch.no_grad():
        for kind, named in tensors.items():
            pieces[kind] = {}
            for name, piece in share(named, rank, world).items():
                on_gpu |= piece.tensor.is_cuda
                pieces[kind][name] = Piece(memory.copy(f"{kind}/{name}", piece.tensor), piece.start, piece.rows)
    if on_gpu:
        torch.cuda.synchronize()
    return pieces
