"""The figures of a training: losses by noise level, speed, memory, and whether it must stop. They are summed on the device. The
host reads them only when it reports.

In: losses, noise and gradient norm of each step. Out: a StepReport every log_every steps, over all workers, and a NonFiniteError
when too many steps in a row were skipped. A total loss says little, because most of its value comes from noise levels where nothing
is left to learn; what improves shows in bins of logsnr.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semantica.denoiser.sizes import training_flops
from semantica.diffusion.process import LogSNR
from semantica.diffusion.schedule import logsnr
from semantica.diffusion.settings import ScheduleConfig
from semantica.errors import SemanticaError
from semantica.training.recipe import TrainConfig

WIDTH = 2  # of a bin, in logsnr [C]
_NAN = float("nan")
_SIDE, _ROUNDS, _CALLS = 8192, 3, 8  # of the square products: 70 ms of an H100 in bfloat16


class NonFiniteError(SemanticaError):
    """Steps in a row, up to `step`, whose loss or gradients were not finite. The weights are those before them."""

    step: int = 0


@dataclass(frozen=True)
class LevelLoss:
    """The examples whose logsnr is nearest to `logsnr`: how many, the mean of ‖eps - eps_hat‖² and that of ‖v - v_hat‖²."""

    logsnr: int
    num: int
    loss: float
    v_loss: float


@dataclass(frozen=True)
class StepReport:
    """What hooks are told: figures since the last report, over the steps that were not skipped. NaN where all of them were.

    data_wait_share: of the time, that the loop waited for a batch; on a GPU, which computes meanwhile, more than it lost by that.
    mfu: FLOPs of the denoiser, forward and backward, as a share of the device's. memory_bytes: of this worker (see `speed`).
    """

    step: int
    loss: float
    grad_norm: float  # before clipping
    learning_rate: float
    num_skipped: int  # steps whose loss or gradients were not finite
    images_per_second: float
    data_wait_share: float
    mfu: float | None
    memory_bytes: int
    levels: tuple[LevelLoss, ...]

    def metrics(self) -> dict[str, float]:
        """Every figure by its name; those of the noise levels as loss_logsnr_-12 and v_loss_logsnr_-12."""
        figures = {name: value for name, value in self.__dict__.items() if name not in ("step", "levels") and value is not None}
        by_level = {f"loss_logsnr_{level.logsnr}": level.loss for level in self.levels}
        return figures | by_level | {f"v_loss_logsnr_{level.logsnr}": level.v_loss for level in self.levels}


class StepSums:
    """Sums over the steps since the last report, and how many steps in a row were skipped."""

    def __init__(self, config: TrainConfig, device: torch.device | str) -> None:
        self.config, self.device = config, device
        self._peak = peak_flops(config, device)
        self._flops = training_flops(config.denoiser) if self._peak is not None else 0
        self._streak = torch.zeros((), device=device)
        self._longest = torch.zeros((), device=device)
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self._levels = torch.zeros(3, len(centres(self.config.schedule)), device=self.device, dtype=torch.float64)
        self._steps = torch.zeros(3, device=self.device, dtype=torch.float64)  # taken, skipped, sum of norms
        self._images, self.waited_s, self._since = 0, 0.0, time.perf_counter()

    def add(self, losses: Float[Tensor, " b"], t: Float[Tensor, " b"], norm: Float[Tensor, ""]) -> None:
        """Take in a step: the losses and times of its slots, and the gradient norm, which says whether it was skipped."""
        taken = torch.isfinite(norm)
        self._levels += level_sums(losses, logsnr(t, self.config.schedule), taken, self.config.schedule)
        self._steps += torch.stack([taken, ~taken, torch.where(taken, norm, 0.0)])
        self._streak = torch.where(taken, 0.0, self._streak + 1)
        self._longest = torch.maximum(self._longest, self._streak)
        self._images += len(losses)

    def check(self, step: int) -> None:
        """Raise NonFiniteError when max_skipped steps in a row were skipped; after `step` steps. All workers raise alike."""
        if int(self._longest) >= self.config.max_skipped:
            error = NonFiniteError(
                f"train: loss or gradients were not finite in {int(self._longest)} steps in a row up to step {step} "
                f"(train.max_skipped is {self.config.max_skipped}); lower train.optimizer.learning_rate, or look at their pictures"
            )
            error.step = step
            raise error

    def report(self, step: int, learning_rate: float, total: Callable[[Tensor], Tensor]) -> StepReport:
        """The figures since the last report, after `step` steps, and a new interval. `total` adds a vector up over the workers."""
        sums = torch.cat([self._levels.flatten(), self._steps]).cpu()  # waits for the device, so that the time is that of the steps
        seconds = time.perf_counter() - self._since
        clock = torch.tensor([1.0, self._images, seconds, self.waited_s], dtype=torch.float64)
        *by_level, taken, skipped, norms, workers, images, all_seconds, waited = total(
            torch.cat([sums, clock]).to(self.device)
        ).tolist()
        num = len(by_level) // 3
        counts, losses, v_losses = by_level[:num], by_level[num : 2 * num], by_level[2 * num :]
        self.restart()
        return StepReport(
            step=step,
            loss=sum(losses) / sum(counts) if any(counts) else _NAN,
            grad_norm=norms / taken if taken else _NAN,
            learning_rate=learning_rate,
            num_skipped=round(skipped / workers),
            images_per_second=images * workers / all_seconds,
            data_wait_share=waited / all_seconds,
            mfu=None if self._peak is None else self._flops * images / all_seconds / self._peak,
            memory_bytes=memory_bytes(self.device),
            levels=level_losses([counts, losses, v_losses], self.config.schedule),
        )


def centres(schedule: ScheduleConfig) -> list[int]:
    """The middles of the bins, multiples of WIDTH, which cover logsnr_min to logsnr_max."""
    first = math.floor((schedule.logsnr_min - WIDTH / 2) / WIDTH) + 1
    last = math.ceil((schedule.logsnr_max + WIDTH / 2) / WIDTH) - 1
    return [WIDTH * index for index in range(first, last + 1)]


def level_sums(
    losses: Float[Tensor, " b"], logsnr: LogSNR, counted: Bool[Tensor, ""], schedule: ScheduleConfig
) -> Float[Tensor, "3 n"]:
    """Number of examples, sum of eps losses and sum of v losses a bin, float64; all 0 unless `counted`.

    v_loss = loss / sigmoid(logsnr), whatever the network predicts (see `diffusion.process.eps_loss`).
    """
    middles = centres(schedule)
    index = ((logsnr - middles[0]) / WIDTH).round().clamp(0, len(middles) - 1)
    inside = index == torch.arange(len(middles), device=logsnr.device)[:, None]
    values = torch.stack([torch.ones_like(losses), losses, losses / torch.sigmoid(logsnr)]).double()
    # Not a product with the mask: 0 · NaN is NaN.
    return torch.where(inside & counted, values[:, None], 0.0).sum(-1)


def level_losses(sums: Sequence[Sequence[float]], schedule: ScheduleConfig) -> tuple[LevelLoss, ...]:
    """The means of every bin that had an example, from the sums of `level_sums`, in the order of logsnr."""
    rows = zip(centres(schedule), *sums, strict=True)
    return tuple(LevelLoss(middle, round(num), loss / num, v / num) for middle, num, loss, v in rows if num)


def peak_flops(config: TrainConfig, device: torch.device | str) -> float | None:
    """FLOPs a second of one device, that MFU is a share of: the configured ones, or those of the fastest of some matrix products.

    Products in the precision of training, so a share of what this device reaches, not of its data sheet [C]. None on a CPU, unless
    configured.
    """
    device = torch.device(device)
    if config.peak_tflops is not None:
        return config.peak_tflops * 1e12
    if device.type != "cuda":
        return None
    dtype = torch.bfloat16 if config.compute.precision == "bfloat16" else torch.float32
    a = torch.ones(_SIDE, _SIDE, device=device, dtype=dtype)
    out = a @ a
    fastest = float("inf")
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(_CALLS):
            torch.mm(a, a, out=out)
        end.record()
        end.synchronize()
        fastest = min(fastest, start.elapsed_time(end) / 1000 / _CALLS)
    return 2 * _SIDE**3 / fastest


def memory_bytes(device: torch.device | str) -> int:
    """The most that tensors ever took on a CUDA device; elsewhere the resident memory of this process."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
