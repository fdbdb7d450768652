"""A trained denoiser, ready to draw: on its device, in its precision, compiled when asked for.

In: a checkpoint or a release. Out: `model.bind(cond, w)`, the `Denoise` that samplers take, and how many rows fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from semantica.conditioning.values import Conditioning
from semantica.denoiser.sizes import sampling_bytes
from semantica.denoiser.uvit import UViT
from semantica.diffusion.guidance import guided
from semantica.diffusion.process import Denoise, bind_with
from semantica.diffusion.settings import GuidanceConfig, Prediction, ScheduleConfig
from semantica.generation.settings import SpeedConfig
from semantica.training.checkpoint import Checkpoint

CPU = torch.device("cpu")
MEMORY_SHARE = 0.6  # of what is free: the estimate knows neither the allocator's rounding nor the workspaces of convolutions


@dataclass(frozen=True)
class Model:
    """A network in eval mode on `device`, what it predicts, and the schedule it was trained on."""

    network: UViT
    schedule: ScheduleConfig
    prediction: Prediction = "v"
    device: torch.device = CPU

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, ema: bool = True) -> Model:
        """The model of a checkpoint, on the CPU, with EMA or raw weights."""
        return cls(checkpoint.network(ema=ema), checkpoint.config.schedule, checkpoint.config.prediction)

    def on(self, device: torch.device | str, speed: SpeedConfig = SpeedConfig()) -> Model:  # noqa: B008 - it is frozen
        """This model on `device`, in the arithmetic of `speed`. The network object itself is moved, not copied."""
        device = torch.device(device)
        dtype = torch.bfloat16 if speed.precision == "bfloat16" else torch.float32
        network = self.network.to(device, dtype).to(memory_format=torch.channels_last)
        if speed.compile:
            network.compile(fullgraph=True, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)
        return Model(network, self.schedule, self.prediction, device)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what it draws."""
        return self.network.config.shape

    def bind(self, cond: Conditioning, w: float = 0.0, beyond: GuidanceConfig = GuidanceConfig()) -> Denoise:  # noqa: B008
        """The Denoise of the rows of `cond` at guidance weight w, refined by `beyond`: (z, logsnr) -> x_hat, both on `device`.

        What depends on `cond` alone (keys and values of every branch of guidance) is computed here, once, from the weights of this
        moment. Draw under `torch.no_grad()`; a wrapper of the Denoise that needs gradients turns them on for itself.
        """
        signals = self.network.config.signals
        return guided(bind_with(self.network, self.prediction), cond.to(self.device), w, beyond, signals)

    def rows_that_fit(self) -> int:
        """How many rows the network can compute at once in the memory that is free now; at least 1."""
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else psutil.virtual_memory().available
        dtype = next(self.network.parameters()).dtype
        return max(1, int(MEMORY_SHARE * free / sampling_bytes(self.network.config, dtype)))


def in_chunks(draw: Callable[[int, int], Tensor], num: int, size: int) -> Tensor:
    """The rows 0 .. num of draw(start, end), at most `size` at once, fewer from where the device runs out of memory.

    A chunk that did not fit is drawn again from its start, in two halves. Raises torch.OutOfMemoryError when one row does not fit.
    """
    parts, start = [], 0
    while start < num:
        tried = min(size, num - start)
        try:
            parts.append(draw(start, start + tried))
        except torch.OutOfMemoryError:
            if tried == 1:
                raise
            size = (tried + 1) // 2
            torch.cuda.empty_cache()
            continue
        start += len(parts[-1])
    return torch.cat(parts)
