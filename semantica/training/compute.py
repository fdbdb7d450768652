"""How the arithmetic of training is done: precision, memory layout, compilation, activation checkpointing, and how several workers
share the state. What is trained is the recipe's; these change speed, memory and rounding.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from semantica.config import config, free, require
from semantica.denoiser.uvit import UViT
from semantica.errors import ConfigError

Precision = Literal["float32", "bfloat16"]
Recompute = Literal["none", "transformer", "all"]
Parallel = Literal["ddp", "fsdp", "hsdp"]


@config
class ComputeConfig:
    """Settings of one worker's arithmetic, and of what it holds. The defaults suit CPUs; the presets for GPUs say what suits them.

    precision: of products and convolutions, by autocast. Weights, their gradients and the average of these over the workers, loss,
    Adam and EMA are float32 always. recompute: which blocks keep their input only, and run again in the backward pass.
    parallel: with ddp every worker holds all of weights, gradients, Adam's moments and EMA; with fsdp its rows of them; with hsdp
    each group of shard_workers workers shares one copy, such as those of one machine.

    Only precision decides what is trained. The others may change when a training resumes: what they change is the order in which
    float32 numbers are added, so weights agree but for rounding. recompute changes no bit.
    """

    precision: Precision = "float32"
    channels_last: bool = free(True)
    compile: bool = free(False)  # the network as one graph, with sharded weights each block; a minute at the start of every worker
    recompute: Recompute = free("none")
    parallel: Parallel = free("ddp")
    shard_workers: int | None = free(None)  # with hsdp, and only there: how many workers share one copy

    def __post_init__(self) -> None:
        fits = self.shard_workers is None if self.parallel != "hsdp" else (self.shard_workers or 0) >= 2
        expected = "2 or more with parallel hsdp" if self.parallel == "hsdp" else f"None with parallel {self.parallel}"
        require(fits, "train.compute.shard_workers", expected, self.shard_workers)

    @property
    def is_sharded(self) -> bool:
        """True when a worker of several holds a part of the state only."""
        return self.parallel != "ddp"

    def check_workers(self, num_workers: int) -> None:
        """Raise ConfigError when so many workers cannot share the state as `parallel` says."""
        if self.shard_workers is not None and num_workers % self.shard_workers:
            raise ConfigError(
                f"train.compute.shard_workers must divide cluster.num_workers = {num_workers}, got {self.shard_workers}; "
                "change either, or train.compute.parallel"
            )

    def prepare(self, network: UViT) -> UViT:
        """The network itself, laid out and compiled. Before it is wrapped for several workers."""
        if self.channels_last and self.is_sharded:
            _lay_out_maps(network)
        elif self.channels_last:
            network.to(memory_format=torch.channels_last)
        for stage in network.stages:
            stage.recomputed = self.recompute == "all" or (self.recompute == "transformer" and stage.is_sequence)
        if self.compile:
            # Sharded weights are gathered between the blocks, where no graph can be.
            for part in shard_units(network) if self.is_sharded else [network]:
                part.compile(fullgraph=True, dynamic=False)
        return network

    def autocast(self, device: torch.device | str) -> AbstractContextManager[object]:
        """The context in which the forward pass runs."""
        kind = torch.device(device).type
        # No cache: a weight is used once in a pass, and what is kept of it would stay until the pass is over.
        return torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16", cache_enabled=False)


def shard_units(network: UViT) -> list[nn.Module]:
    """The parts whose weights are gathered and let go together: every block. What is left over, the network itself gathers."""
    return [block for stage in network.stages for block in stage.blocks]


def _lay_out_maps(network: UViT) -> None:
    """Lay the maps out instead of the weights, which fully_shard takes contiguous only.

    Convolutions and norms keep the layout of what they are given, so maps get it where they enter; the library rearranges the
    weights of convolutions on the way. A block's own hook comes after fully_shard's, in the first pass and when it is run again.
    """
    convolutional = [block for stage in network.stages if not stage.is_sequence for block in stage.blocks]
    for part in (network.head_in, *convolutional):
        part.register_forward_pre_hook(lambda module, args: (_channels_last(args[0]), *args[1:]))
    for widen in network.widen:
        widen.register_forward_hook(lambda module, args, h: _channels_last(h))


def _channels_last(maps: Tensor) -> Tensor:
    made = maps.contiguous(memory_format=torch.channels_last)
    # A view of a batch of one may have any stride there, and fully_shard makes such views: then what goes by strides, such as
    # GroupNorm, takes the maps for contiguous ones, and dropout draws another mask than in the pass that is run again.
    told = made.stride(0) == made[0].numel()
    return made if told else made.clone(memory_format=torch.channels_last)
