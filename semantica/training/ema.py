"""Polyak averaging of the weights, in float32 whatever the weights are (method.md §4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from semantica.training.parallel import local
from semantica.training.recipe import EmaConfig


class Ema:
    """The running average of a network's parameters, of which a worker has what it has of them. Buffers are constants of the
    architecture and are not averaged.
    """

    def __init__(self, network: nn.Module, settings: EmaConfig) -> None:
        self.settings = settings
        self.num_updates = 0
        self._live = dict(network.named_parameters())
        self.values: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights by 1 - decay."""
        weight = 1.0 - self.settings.at(self.num_updates)
        live = [local(p).float() for p in self._live.values()]
        torch._foreach_lerp_([local(value) for value in self.values.values()], live, weight)
        self.num_updates += 1
