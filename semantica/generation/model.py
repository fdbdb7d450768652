"""A trained denoiser made ready to draw: on its device, in its precision, compiled when asked for. In: a checkpoint or a release.
Out: the `Denoise` that samplers take, and how many pictures it can draw side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from semantica.denoiser.sizes import sampling_bytes
from semantica.denoiser.uvit import UViT
from semantica.diffusion.process import Denoise, denoise_with
from semantica.diffusion.settings import Prediction, ScheduleConfig
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
        """That of a checkpoint, on the CPU, with EMA or raw weights."""
        return cls(checkpoint.network(ema=ema), checkpoint.config.schedule, checkpoint.config.prediction)

    def on(self, device: torch.device | str, speed: SpeedConfig = SpeedConfig()) -> Model:  # noqa: B008 - it is frozen
        """The same, moved and made fast. It is the same network object: moved, not copied."""
        device = torch.device(device)
        dtype = torch.bfloat16 if speed.precision == "bfloat16" else torch.float32
        network = self.network.to(device, dtype).to(memory_format=torch.channels_last)
        if speed.compile:
            network.compile(fullgraph=True, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)
        return Model(network, self.schedule, self.prediction, device)

    def denoise(self) -> Denoise:
        """The Denoise of the network. What it makes of a conditioning is computed once, not once a step."""
        return denoise_with(self.network, self.prediction)

    def rows_that_fit(self) -> int:
        """How many rows the network can take at once in the memory that is free now; at least 1."""
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else psutil.virtual_memory().available
        dtype = next(self.network.parameters()).dtype
        return max(1, int(MEMORY_SHARE * free / sampling_bytes(self.network.config, dtype)))


def in_chunks(draw: Callable[[int, int], Tensor], num: int, size: int) -> Tensor:
    """The rows 0 .. num of draw(start, end), at most `size` at once, fewer when the device says that its memory is out.

    Raises torch.OutOfMemoryError when there is not enough for one row.
    """
    parts, start = [], 0
    while start < num:
        try:
            parts.append(draw(start, min(start + size, num)))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = (size + 1) // 2
            torch.cuda.empty_cache()
            continue
        start += len(parts[-1])
    return torch.cat(parts)
