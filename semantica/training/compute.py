"""How the arithmetic of training is done: precision, memory layout, compilation, activation checkpointing. What is trained is the
recipe's; these change speed, memory and rounding.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch

from semantica.config import config
from semantica.denoiser.uvit import UViT

Precision = Literal["float32", "bfloat16"]
Recompute = Literal["none", "transformer", "all"]


@config
class ComputeConfig:
    """Settings of one worker's arithmetic. The defaults suit CPUs; the presets for GPUs say what suits those.

    precision: of products and convolutions, by autocast. Weights, their gradients and the average of these over the workers, loss,
    Adam and EMA are float32 always. recompute: which blocks keep their input only, and run again in the backward pass.
    """

    precision: Precision = "float32"
    channels_last: bool = True
    compile: bool = False  # the network, as one graph; a minute at the start of every worker
    recompute: Recompute = "none"

    def prepare(self, network: UViT) -> UViT:
        """The network itself, laid out and compiled. Before it is wrapped for several workers."""
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
        for stage in network.stages:
            stage.recomputed = self.recompute == "all" or (self.recompute == "transformer" and stage.is_sequence)
        if self.compile:
            network.compile(fullgraph=True, dynamic=False)
        return network

    def autocast(self, device: torch.device | str) -> AbstractContextManager[object]:
        """The context in which the forward pass runs."""
        kind = torch.device(device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16")
