"""One training step: the noise of each slot, the loss, the update. Pure functions of (weights, batch, step)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from semantica.conditioning import Conditioning
from semantica.diffusion.loss import eps_loss
from semantica.diffusion.process import Prediction, diffuse
from semantica.diffusion.schedule import ScheduleConfig, logsnr
from semantica.training.recipe import OptimizerConfig


@dataclass(frozen=True)
class StepNoise:
    """What chance decides in a step: t (b,) ~ U(0, 1), eps (b, 3, H, W) ~ N(0, I), dropped (b,) where the condition is withheld,
    unasked (b,) where the similarity alone is.
    """

    t: Float[Tensor, " b"]
    eps: Float[Tensor, "b 3 h w"]
    dropped: Bool[Tensor, " b"]
    unasked: Bool[Tensor, " b"]

    def to(self, device: torch.device | str) -> StepNoise:
        """The same on `device`."""
        return StepNoise(self.t.to(device), self.eps.to(device), self.dropped.to(device), self.unasked.to(device))


def slot_seed(*key: object) -> int:
    """A 63-bit seed that depends on the key alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8], "little") >> 1


def step_noise(
    seed: int,
    step: int,
    slots: Iterable[int],
    shape: tuple[int, int, int],
    dropout: float,
    similarity_dropout: float = 0.0,
) -> StepNoise:
    """The noise of the given slots of a step: each slot has a generator of its own, so neither worker nor device count matters."""
    t, eps, dropped, unasked = [], [], [], []
    for slot in slots:
        generator = torch.Generator().manual_seed(slot_seed("noise", seed, step, slot))
        t.append(torch.rand((), generator=generator))
        dropped.append(torch.rand((), generator=generator) < dropout)
        eps.append(torch.randn(shape, generator=generator))
        unasked.append(torch.rand((), generator=generator) < similarity_dropout)
    return StepNoise(torch.stack(t), torch.stack(eps), torch.stack(dropped), torch.stack(unasked))


def step_loss(
    network: nn.Module,
    x: Float[Tensor, "b 3 h w"],
    cond: Conditioning,
    noise: StepNoise,
    schedule: ScheduleConfig,
    prediction: Prediction = "v",
) -> Float[Tensor, " b"]:
    """The loss of each example, float32: mean over pixels of ||eps - eps_hat||² (Semantica, section 3)."""
    lam = logsnr(noise.t, schedule)
    z = diffuse(x, noise.eps, lam)
    output = network(z, lam, cond.dropped(noise.dropped).of_any_similarity(noise.unasked))
    losses: Tensor = eps_loss(output, x, noise.eps, lam, prediction)
    return losses


def make_optimizer(network: nn.Module, settings: OptimizerConfig) -> torch.optim.Adam:
    """Adam with the recipe's constants, one kernel for all weights; the learning rate is set at every step by `update`."""
    betas = (settings.beta1, settings.beta2)
    return torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=betas, eps=settings.eps, fused=True)


def update(network: nn.Module, optimizer: torch.optim.Optimizer, settings: OptimizerConfig, rate: float) -> Float[Tensor, ""]:
    """Clip, set the learning rate, apply the gradients and clear them. Returns the gradient norm before clipping.

    A tensor: to read its value would make the host wait for the device at every step.
    """
    norm = nn.utils.clip_grad_norm_(network.parameters(), settings.max_grad_norm, foreach=True)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.detach()
