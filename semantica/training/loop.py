"""The training loop: from a loader and a network to a checkpoint, top to bottom on one screen. Knows no Ray and no MLflow.

The loop sees one worker's share of the batch. The caller wraps the network for its kind of parallelism, whose gradient average
makes the update that of the whole batch, and passes hooks for what happens outside: logging, samples and checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn

from semantica.denoiser.uvit import UViT
from semantica.training.checkpoint import Checkpoint, Provenance, TrainState
from semantica.training.ema import Ema
from semantica.training.feed import Loader, feed
from semantica.training.recipe import TrainConfig
from semantica.training.step import add_gradients, make_optimizer, update
from semantica.training.watch import StepReport, Watch
from semantica.training.xla import XlaMesh


class Order(IntEnum):
    """What a training is asked for from outside between two steps; a higher one holds when several are asked for."""

    GO_ON = 0
    SAVE = 1  # now, and go on: a machine may go away soon
    STOP = 2  # save and end


@dataclass(frozen=True)
class Hooks:
    """What happens outside, on every worker: on_report every log_every steps, on_samples(step, network, ema) every sample_every and
    on_checkpoint(state) every checkpoint_every steps, and all of them at the end. on_point(step, network, ema) comes after those
    of `points`, before a checkpoint of that step: who goes on from there finds the point done.

    The state lives: what is to be kept of it is copied before on_checkpoint comes back (`Saver.save` does). on_samples leaves the
    network as it is. total adds a vector of figures up over the workers, in place or not. order is asked after every step and says
    the same on every worker. last: a step after which the training is saved and left, as if order had said STOP.
    """

    on_report: Callable[[StepReport], None]
    on_checkpoint: Callable[[TrainState], None]
    on_samples: Callable[[int, UViT, Ema], None] = lambda step, network, ema: None
    total: Callable[[Tensor], Tensor] = lambda figures: figures
    order: Callable[[], Order] = lambda: Order.GO_ON
    on_point: Callable[[int, UViT, Ema], None] = lambda step, network, ema: None
    points: frozenset[int] = frozenset()
    last: int | None = None


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
    xla: XlaMesh | None = None,
) -> UViT:
    """The trained network (raw weights), after steps [start.step or 0, num_steps), or fewer when hooks say so.

    xla: the chips to train on, in place of wrap and device.
    Raises NonFiniteError after max_skipped steps in a row whose loss or gradients are not finite; fewer are skipped and counted.
    """
    if xla is not None:
        xla.prepare(config)
        device = xla.device
    network = config.compute.prepare(initial_network(config).to(device).train())
    wrapped: nn.Module = network if xla else wrap(network)  # first: sharded weights are other parameters than whole ones
    ema = (xla.average if xla else Ema)(network, config.ema)
    optimizer = (xla.optimizer if xla else make_optimizer)(network, config.optimizer)
    first = 0
    if start is not None:
        start.restore(network, ema, optimizer)
        first = start.step
    if xla is not None:
        wrapped = xla.laid_out(network, ema, optimizer)
    watch = Watch(config, device)

    with feed(loader, config, range(first, config.num_steps), device, xla.placed if xla else None) as made:
        for step in range(first, config.num_steps):
            before = time.perf_counter()
            batch, noise = next(made)
            watch.waited_s += time.perf_counter() - before
            rate = config.optimizer.rate(step, config.num_steps)
            with xla.step() if xla else nullcontext():
                losses = add_gradients(wrapped, batch, noise, step, config)
                norm = update(network, optimizer, config.optimizer, rate)
                ema.update()
                watch.add(losses, noise.t, norm)
            batch.recycle()
            done = step + 1
            order = Order.STOP if done == hooks.last else hooks.order()
            saves = order is not Order.GO_ON or config.is_due(config.checkpoint_every, done)
            if config.is_due(config.log_every, done):
                hooks.on_report(watch.report(done, rate, hooks.total))
            if config.is_due(config.log_every, done) or saves:
                watch.check(done)
            if config.is_due(config.sample_every, done) and order is not Order.STOP:
                hooks.on_samples(done, network, ema)
            if done in hooks.points:
                hooks.on_point(done, network, ema)
            if saves:
                hooks.on_checkpoint(TrainState(network, ema, optimizer, config, done, provenance))
            if order is Order.STOP:
                break
    return network
