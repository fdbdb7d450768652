"""What a training computes on. The loop asks a `Backend` for everything that differs between kinds of devices.

In: the network, EMA, optimizer and batches of a training. Out: the same on the devices of this worker, laid out there, and figures
added up over all workers. `TorchBackend` is eager PyTorch, one device per worker. `semantica.training.xla.XlaMesh` is torch-xla.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from semantica.denoiser.uvit import UViT
from semantica.training.ema import Ema
from semantica.training.feed import Place
from semantica.training.parallel import Sharing, sharing, wrap
from semantica.training.recipe import ComputeConfig, EmaConfig, OptimizerConfig, TrainConfig
from semantica.training.step import make_optimizer


@runtime_checkable
class Backend(Protocol):
    """Devices of one worker.

    device: computes the steps. aside: computes everything else, such as samples and tokens on the fly. loader_rank: whose share of
    each batch this worker loads.
    """

    device: torch.device
    aside: torch.device
    loader_rank: int

    @property
    def gathers(self) -> bool:
        """True when all workers must copy the state together for one of them to write it."""

    def prepare(self, config: TrainConfig) -> None:
        """Set the process up before anything is computed. Raises ConfigError for a recipe that this backend does not run."""

    def wrap(self, network: UViT, compute: ComputeConfig) -> nn.Module:
        """The module that the step calls, on the device. Its parameters may be new ones: make EMA and optimizer after it."""

    def average(self, network: nn.Module, settings: EmaConfig) -> Ema:
        """The average of the weights."""

    def optimizer(self, network: nn.Module, settings: OptimizerConfig) -> torch.optim.Adam:
        """Adam with the recipe's constants."""

    def lay_out(self, network: UViT, ema: Ema, optimizer: torch.optim.Optimizer) -> None:
        """Give every tensor of the training its place on the devices, before the first step."""

    @property
    def place(self) -> Place | None:
        """Puts a batch and its noise where they are computed with; None: on `device`."""

    def step(self) -> AbstractContextManager[object]:
        """The context in which one step is computed."""

    def total(self, figures: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The figures added up over all workers."""

    def sharing(self, compute: ComputeConfig) -> Sharing:
        """Which part of the state this worker has, and writes to checkpoints."""


class TorchBackend:
    """Eager PyTorch on one device. Gradients are averaged over torch.distributed's default group, if there is one."""

    gathers = False
    place = None

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = self.aside = torch.device(device)
        self.loader_rank, self._world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def prepare(self, config: TrainConfig) -> None:
        """Raise ConfigError when the workers cannot share the state as the recipe says."""
        config.compute.check_workers(self._world)

    def wrap(self, network: UViT, compute: ComputeConfig) -> nn.Module:
        """The network in DDP, or sharded by FSDP2 (see `semantica.training.parallel`); alone, the network itself."""
        return wrap(network, compute, self.device)

    def average(self, network: nn.Module, settings: EmaConfig) -> Ema:
        """The average of what this worker has of the weights."""
        return Ema(network, settings)

    def optimizer(self, network: nn.Module, settings: OptimizerConfig) -> torch.optim.Adam:
        """Fused Adam."""
        return make_optimizer(network, settings)

    def lay_out(self, network: UViT, ema: Ema, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: the tensors are where they were made."""

    def step(self) -> AbstractContextManager[object]:
        """No context."""
        return nullcontext()

    def total(self, figures: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The sum over the workers, in place."""
        if self._world > 1:
            dist.all_reduce(figures)
        return figures

    def sharing(self, compute: ComputeConfig) -> Sharing:
        """All of the state with ddp; its rows with fsdp and hsdp."""
        return sharing(compute, self.loader_rank, self._world)
