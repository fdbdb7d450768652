"""What is said about training while it runs, and when it is stopped. Figures are summed on the device; the host reads them only
when it reports.

In: losses, noise and gradient norm of each step. Out: a StepReport every log_every steps, over all workers where the caller gives a
function that adds up over them, and a NonFiniteError when too many steps in a row were skipped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from semantica.denoiser.sizes import training_flops
from semantica.diffusion.schedule import logsnr
from semantica.errors import SemanticaError
from semantica.training.levels import LevelLoss, centres, level_losses, level_sums
from semantica.training.recipe import TrainConfig
from semantica.training.speed import memory_bytes, peak_flops

_NAN = float("nan")


class NonFiniteError(SemanticaError):
    """Steps in a row, up to `step`, whose loss or gradients were not finite. The weights are those before them."""

    step: int = 0


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


class Watch:
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
