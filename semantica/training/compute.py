"""How the arithmetic of training is done: precision, memory layout, compilation, activation checkpointing, and how several workers
share the state. What is trained is the recipe's; these change speed, memory and rounding.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from semantica.denoiser.uvit import UViT
from semantica.training.recipe import ComputeConfig


def prepare(network: UViT, compute: ComputeConfig) -> UViT:
    """The network itself, laid out and compiled. Before it is wrapped for several workers."""
    if compute.channels_last and compute.is_sharded:
        _lay_out_maps(network)
    elif compute.channels_last:
        network.to(memory_format=torch.channels_last)
    for stage in network.stages:
        stage.recomputed = compute.recompute == "all" or (compute.recompute == "transformer" and stage.is_sequence)
    if compute.compile:
        # Sharded weights are gathered between the blocks, where no graph can be.
        for part in shard_units(network) if compute.is_sharded else [network]:
            part.compile(fullgraph=True, dynamic=False)
    return network


def autocast(compute: ComputeConfig, device: torch.device | str) -> AbstractContextManager[object]:
    """The context in which the forward pass runs."""
    kind = torch.device(device).type
    # No cache: a weight is used once in a pass, and what is kept of it would stay until the pass is over.
    return torch.autocast(kind, torch.bfloat16, enabled=compute.precision == "bfloat16", cache_enabled=False)


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
