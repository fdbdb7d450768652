"""One training step: the noise of each slot, the loss, its gradients in micro-batches, the update. Functions of (weights, batch,
step) that never make the host wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from semantica.conditioning.values import Conditioning
from semantica.diffusion.keyed_random import slot_seed
from semantica.diffusion.process import diffuse, eps_loss, loss_weight
from semantica.diffusion.schedule import logsnr
from semantica.diffusion.settings import Prediction, ScheduleConfig
from semantica.pairs.loader import Batch
from semantica.training.compute import autocast
from semantica.training.recipe import Dropout, OptimizerConfig, TrainConfig


@dataclass(frozen=True)
class StepNoise:
    """What chance decides in a step: t (b,) ~ U(0, 1), eps (b, C, H, W) ~ N(0, I), and per signal a mask (b,), True where the
    denoiser is not told it.
    """

    t: Float[Tensor, " b"]
    eps: Float[Tensor, "b c h w"]
    dropped: Mapping[str, Bool[Tensor, " b"]]

    def map(self, function: Callable[[Tensor], Tensor]) -> StepNoise:
        """The same with `function` of every tensor."""
        masks = {name: function(mask) for name, mask in self.dropped.items()}
        return StepNoise(function(self.t), function(self.eps), masks)

    def to(self, device: torch.device | str) -> StepNoise:
        """The same on `device`."""
        return self.map(lambda tensor: tensor.to(device))

    def __getitem__(self, rows: slice) -> StepNoise:
        return self.map(lambda tensor: tensor[rows])


def step_noise(seed: int, step: int, slots: Iterable[int], shape: tuple[int, int, int], dropout: Dropout) -> StepNoise:
    """The noise of the given slots of a step: each slot has a generator of its own, so neither worker nor device count matters.

    The order of the draws is a part of every training's result: t, the mask of all signals together, eps, then the mask of each
    signal alone, in the order of `dropout.alone`. A new signal comes last.
    """
    filled, names = list(slots), list(dropout.alone)
    t, together, *alone = torch.empty(2 + len(names), len(filled)).unbind()
    eps = torch.empty(len(filled), *shape)
    generator = torch.Generator()
    for row, slot in enumerate(filled):
        generator.manual_seed(slot_seed("noise", seed, step, slot))
        t[row].uniform_(generator=generator)
        together[row].uniform_(generator=generator)
        eps[row].normal_(generator=generator)
        for draws in alone:
            draws[row].uniform_(generator=generator)
    masks = dict.fromkeys(dropout.together, together < dropout.rate)
    for name, draws in zip(names, alone, strict=True):
        mask = draws < dropout.alone[name]
        masks[name] = masks[name] | mask if name in masks else mask
    return StepNoise(t, eps, masks)


def step_loss(
    network: nn.Module,
    x: Float[Tensor, "b c h w"],
    cond: Conditioning,
    noise: StepNoise,
    schedule: ScheduleConfig,
    prediction: Prediction = "v",
) -> Float[Tensor, " b"]:
    """The loss of each example, float32: mean over pixels and channels of ||eps - eps_hat||² (Semantica, section 3)."""
    lam = logsnr(noise.t, schedule)
    z = diffuse(x, noise.eps, lam)
    output = network(z, lam, cond.dropped(noise.dropped))
    losses: Tensor = eps_loss(output, x, noise.eps, lam, prediction)
    return losses


def add_gradients(network: nn.Module, batch: Batch, noise: StepNoise, step: int, config: TrainConfig) -> Float[Tensor, " b"]:
    """The loss of every slot, float32. The gradients of its mean over the slots, weighted by level, are added to the weights'.

    In micro-batches of every m-th slot: what w workers compute in m of them, w·m workers compute in one each, but for rounding.
    """
    slots, device = batch.slots, batch.x.device
    parts = math.ceil(len(slots) / (config.micro_batch_size or len(slots)))
    losses = torch.empty(len(slots), device=device)
    for part in range(parts):
        rows = slice(part, None, parts)
        # Dropout inside the network: a resumed run draws what an uninterrupted one would, and workers draw different masks. Unlike
        # everything else it depends on how many workers and micro-batches share the batch.
        torch.manual_seed(slot_seed("dropout", config.seed, step, slots[rows].start))
        with _averaged_over_workers(network, part == parts - 1):
            with autocast(config.compute, device):
                loss = step_loss(network, batch.x[rows], batch.cond[rows], noise[rows], config.schedule, config.prediction)
            mean = loss.mean() if config.loss == "eps" else (loss * _weight(noise.t[rows], config)).mean()
            # The square of a finite error may be infinite. Then its gradients are made NaN, on this worker and so in the average:
            # every worker sees it in the norm and skips the step.
            share = torch.where(torch.isfinite(mean), len(loss) / len(slots), math.nan).to(mean.dtype)
            torch.autograd.backward(mean, share)
        losses[rows] = loss.detach()
    return losses


def _weight(t: Float[Tensor, " b"], config: TrainConfig) -> Float[Tensor, " b"]:
    return loss_weight(logsnr(t, config.schedule), config.loss, config.loss_bias)


def _averaged_over_workers(network: nn.Module, now: bool) -> AbstractContextManager[object]:
    """DDP and FSDP average the gradients in the backward pass: once, with the last micro-batch; until then they are whole."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)
        return nullcontext()
    if now or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    waiting: AbstractContextManager[object] = network.no_sync()
    return waiting


def make_optimizer(network: nn.Module, settings: OptimizerConfig) -> torch.optim.Adam:
    """Adam with the recipe's constants, one kernel for all weights; the learning rate is set at every step by `update`."""
    betas = (settings.beta1, settings.beta2)
    return torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=betas, eps=settings.eps, fused=True)


def update(network: nn.Module, optimizer: torch.optim.Adam, settings: OptimizerConfig, rate: float) -> Float[Tensor, ""]:
    """Clip, set the learning rate, apply the gradients and clear them. Returns the gradient norm before clipping.

    Where the norm is not finite, weights and moments stay as they are: fused Adam looks at `found_inf` on the device. The step
    counts all the same, so that Adam's count is the number of the step, which is what a checkpoint knows. The norm is a tensor: to
    read its value would make the host wait for the device at every step.
    """
    weights = list(network.parameters())
    batched = weights[0].device.type != "xla"  # which has no such kernels, and fuses by itself
    norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None], foreach=batched)
    if isinstance(norm, DTensor):  # of sharded weights: the sum over all workers' rows
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(weights, settings.max_grad_norm, norm, foreach=batched)
    skipped = (~torch.isfinite(norm)).float()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
    optimizer.step()
    counts = [state["step"] for state in optimizer.state.values()]
    torch._foreach_add_(counts, [skipped] * len(counts))  # one tensor for all would be read by the host
    optimizer.zero_grad(set_to_none=True)
    return norm
