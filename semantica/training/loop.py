"""The training loop: from a loader and a network to a checkpoint, top to bottom on one screen. Knows no Ray and no MLflow.

The loop sees one worker's share of the batch. The backend says what it is computed on, and averages the gradients over the workers,
so that the update is that of the whole batch. Hooks do what happens outside: logging, samples and checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch

from semantica.denoiser.configs import DenoiserConfig
from semantica.denoiser.uvit import UViT
from semantica.errors import FieldError
from semantica.training.backend import Backend, TorchBackend
from semantica.training.checkpoint import Checkpoint, Provenance, TrainState
from semantica.training.compute import prepare
from semantica.training.ema import Ema
from semantica.training.feed import KnowsTokens, Loader, feed
from semantica.training.recipe import TrainConfig
from semantica.training.start import InitialWeights
from semantica.training.step import add_gradients, update
from semantica.training.watch import StepReport, StepSums


class Order(IntEnum):
    """What is asked of a training from outside between two steps. When several are asked for, the highest holds."""

    GO_ON = 0
    SAVE = 1  # now, and go on: a machine may go away soon
    STOP = 2  # save and end


@dataclass(frozen=True)
class Hooks:
    """What happens outside, on every worker. Everything comes at the end too.

    on_report: every log_every steps. on_samples(step, network, ema): every sample_every steps; it must leave the network as it is.
    on_step(step, network, ema): after every step, before that step's checkpoint, so that a resumed run does not repeat it.
    on_checkpoint(state): every checkpoint_every steps, and when an order says so. The state keeps changing: on_checkpoint must copy
    what it keeps before it returns (`Saver.save` does). order(step): asked after every step; it says the same on every worker.
    """

    on_report: Callable[[StepReport], None]
    on_checkpoint: Callable[[TrainState], None]
    on_samples: Callable[[int, UViT, Ema], None] = lambda step, network, ema: None
    on_step: Callable[[int, UViT, Ema], None] = lambda step, network, ema: None
    order: Callable[[int], Order] = lambda step: Order.GO_ON


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
    start: Checkpoint | InitialWeights | None = None,
    backend: Backend | None = None,
) -> UViT:
    """The trained network (raw weights), after steps [start.step or 0, num_steps), or fewer when hooks say so.

    backend: what it is computed on; None: PyTorch on the CPU.
    Raises NonFiniteError after max_skipped steps in a row whose loss or gradients are not finite; fewer are skipped and counted.
    """
    backend = backend or TorchBackend()
    backend.prepare(config)
    network = initial_network(config)
    if start is None and config.denoiser.standardised_tokens:
        if not isinstance(loader, KnowsTokens):
            raise FieldError(DenoiserConfig, "standardised_tokens", "must be False for a loader without token_statistics, got True")
        network.learn_tokens(*loader.token_statistics())
    network = prepare(network.to(backend.device).train(), config.compute)
    module = backend.wrap(network, config.compute)  # first: sharded weights are other parameters than whole ones
    ema, optimizer = backend.average(network, config.ema), backend.optimizer(network, config.optimizer)
    first = 0
    if start is not None:
        start.restore(network, ema, optimizer)
        first = start.step
    backend.lay_out(network, ema, optimizer)
    sums = StepSums(config, backend.device)

    with feed(loader, config, range(first, config.num_steps), backend.device, backend.place) as batches:
        for step in range(first, config.num_steps):
            before = time.perf_counter()
            batch, noise = next(batches)
            sums.waited_s += time.perf_counter() - before
            rate = config.optimizer.rate(step, config.num_steps)
            with backend.step():
                losses = add_gradients(module, batch, noise, step, config)
                norm = update(network, optimizer, config.optimizer, rate)
                ema.update()
                sums.add(losses, noise.t, norm)
            batch.recycle()
            done = step + 1
            order = hooks.order(done)
            saves = order is not Order.GO_ON or config.is_due(config.checkpoint_every, done)
            if config.is_due(config.log_every, done):
                hooks.on_report(sums.report(done, rate, backend.total))
            if config.is_due(config.log_every, done) or saves:
                sums.check(done)
            if config.is_due(config.sample_every, done) and order is not Order.STOP:
                hooks.on_samples(done, network, ema)
            hooks.on_step(done, network, ema)
            if saves:
                hooks.on_checkpoint(TrainState(network, ema, optimizer, config, done, provenance))
            if order is Order.STOP:
                break
    return network
