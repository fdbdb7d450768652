"""The training loop: from a loader and a network to a checkpoint, top to bottom on one screen. Knows no Ray and no MLflow.

The loop sees one worker's share of the batch. The caller wraps the network for its kind of parallelism, whose gradient average
makes the update that of the whole batch, and passes hooks for what happens outside: logging and checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from semantica.denoiser.uvit import UViT
from semantica.pairs.loader import Batch
from semantica.training.checkpoint import Checkpoint, Provenance, save_checkpoint
from semantica.training.ema import Ema
from semantica.training.recipe import TrainConfig
from semantica.training.step import make_optimizer, slot_seed, step_loss, step_noise, update


@runtime_checkable
class Loader(Protocol):
    """What the loop needs of a loader: this worker's share of the batch of a step."""

    def batch(self, step: int) -> Batch: ...


@dataclass(frozen=True)
class StepReport:
    """What hooks are told every log_every steps: figures averaged over this worker's slots since the last report."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    images_per_second: float
    data_wait_share: float


@dataclass(frozen=True)
class Hooks:
    """on_report every log_every steps; on_checkpoint(step, save) every checkpoint_every steps and at the end, on every worker."""

    on_report: Callable[[StepReport], None]
    on_checkpoint: Callable[[int, Callable[[Path], None]], None]


def initial_network(config: TrainConfig) -> UViT:
    """The denoiser at initialisation: the same weights on every worker, from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return UViT(config.denoiser)


def fit(
    config: TrainConfig,
    loader: Loader,
    provenance: Provenance,
    hooks: Hooks,
    *,
    start: Checkpoint | None = None,
    wrap: Callable[[UViT], nn.Module] = lambda network: network,
    device: torch.device | str = "cpu",
) -> UViT:
    """The trained network (raw weights), after steps [start.step or 0, num_steps)."""
    network = config.compute.prepare(initial_network(config).to(device).train())
    ema = Ema(network, config.ema)
    optimizer = make_optimizer(network, config.optimizer)
    first = 0
    if start is not None:
        start.restore(network, ema, optimizer)
        first = start.step
    wrapped = wrap(network)
    side = config.denoiser.resolution_px
    losses: list[Tensor] = []
    norms: list[Tensor] = []
    waited, since = 0.0, time.perf_counter()
    for step in range(first, config.num_steps):
        before = time.perf_counter()
        batch = loader.batch(step)
        noise = step_noise(config.seed, step, batch.slots, (3, side, side), config.conditioning_dropout, config.similarity_dropout)
        waited += time.perf_counter() - before
        # Dropout inside the network: a resumed run draws what an uninterrupted one would, and workers draw different masks. Unlike
        # everything else it depends on how many workers share the batch.
        torch.manual_seed(slot_seed("dropout", config.seed, step, batch.slots.start))
        x, cond = batch.x.to(device), batch.cond.to(device)
        with config.compute.autocast(device):
            loss = step_loss(wrapped, x, cond, noise.to(device), config.schedule, config.prediction)
        torch.autograd.backward(loss.mean())
        norms.append(update(network, optimizer, config.optimizer, config.optimizer.rate(step, config.num_steps)))
        ema.update()
        losses.append(loss.detach().mean())
        done = step + 1
        if done % config.log_every == 0 or done == config.num_steps:
            seconds = time.perf_counter() - since
            hooks.on_report(
                StepReport(
                    step=done,
                    loss=float(torch.stack(losses).mean()),
                    grad_norm=float(torch.stack(norms).mean()),
                    learning_rate=config.optimizer.rate(step, config.num_steps),
                    images_per_second=config.batch_size * len(losses) / seconds,
                    data_wait_share=waited / seconds,
                )
            )
            losses, norms, waited, since = [], [], 0.0, time.perf_counter()
        if done % config.checkpoint_every == 0 or done == config.num_steps:

            def save(folder: Path, done: int = done) -> None:
                save_checkpoint(folder, network, ema, optimizer, config=config, step=done, provenance=provenance)

            hooks.on_checkpoint(done, save)
    return network
