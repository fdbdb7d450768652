"""What a step needs, made while the step before computes: the loader's batch and the noise of its slots, on the device.

In: the recipe and the selected pairs (`training_loader`); a loader and the steps to make (`feed`). Out:
(batch, noise) of each step in order, `ahead` of them made by one thread before they are asked for. Both depend on the step
alone, so nothing depends on how far the thread is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from semantica.config import require
from semantica.data.pictures import TokensOf
from semantica.denoiser.configs import DenoiserConfig
from semantica.pairs.loader import SOURCES, Batch, Batches, LoaderWorker, PairLoader, SelectedPairs
from semantica.training.recipe import TrainConfig
from semantica.training.step import StepNoise, step_noise

T = TypeVar("T")


@runtime_checkable
class Loader(Protocol):
    """What training needs of a loader: this worker's share of the batch of a step.

    One thread asks, not always the main one: torch's global generator, which dropout draws from, is not the loader's to use.
    """

    def batch(self, step: int) -> Batch: ...


@runtime_checkable
class KnowsTokens(Protocol):
    """A loader that knows mean and standard deviation per channel of the tokens that it gives."""

    def token_statistics(self) -> tuple[Tensor, Tensor]: ...


Place = Callable[[Batch, StepNoise], tuple[Batch, StepNoise]]
"""Puts what was made on the host where it is computed with."""


def batches_of(config: TrainConfig) -> Batches:
    """Which batches a recipe asks for. Raises ConfigError for those that no pairs of pictures give."""
    channels = config.denoiser.channels
    require(channels == 3, "channels", "3 to train on pictures", channels, of=DenoiserConfig)
    for signal in config.denoiser.signals:
        SOURCES.check(signal.name)
    return Batches(
        seed=config.seed,
        batch_size=config.batch_size,
        num_lanes=config.num_lanes,
        resolution_px=config.denoiser.resolution_px,
        window_groups=config.window_groups,
        max_images=config.denoiser.max_images,
        signals=config.denoiser.signals,
    )


def training_loader(
    config: TrainConfig,
    pairs: SelectedPairs,
    worker: LoaderWorker = LoaderWorker(),  # noqa: B008 - it is frozen
    *,
    tokens_of: TokensOf | None = None,
) -> PairLoader:
    """The loader of one worker's share."""
    return PairLoader(pairs, batches_of(config), worker, tokens_of=tokens_of)


@contextmanager
def feed(
    loader: Loader, config: TrainConfig, steps: range, device: torch.device | str, place: Place | None = None
) -> Iterator[Iterator[tuple[Batch, StepNoise]]]:
    """An iterator over (batch, noise) of the steps, on `device`, or where `place` puts them.

    What goes wrong in the thread is raised where the step is asked for. Every batch made ahead takes memory, of the device too.
    """
    with made_ahead(_maker(loader, config, torch.device(device), place), steps, config.prefetch) as made:
        yield made


@contextmanager
def made_ahead(make: Callable[[int], T], steps: range, ahead: int) -> Iterator[Iterator[T]]:
    """An iterator over make(step), of which at most `ahead` that nobody asked for are made or in the making, by one thread."""
    if ahead == 0:
        yield map(make, steps)
        return
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed")

    def results() -> Iterator[T]:
        waiting: deque[Future[T]] = deque(pool.submit(make, step) for step in steps[:ahead])
        for index in range(len(steps)):
            result = waiting.popleft().result()
            waiting.extend(pool.submit(make, step) for step in steps[index + ahead : index + ahead + 1])
            yield result

    try:
        yield results()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _maker(
    loader: Loader, config: TrainConfig, device: torch.device, place: Place | None
) -> Callable[[int], tuple[Batch, StepNoise]]:
    def make(step: int) -> tuple[Batch, StepNoise]:
        batch = loader.batch(step)
        noise = step_noise(config.seed, step, batch.slots, config.denoiser.shape, config.dropout)
        return batch, noise

    if place is not None:
        return lambda step: place(*make(step))
    if device.type != "cuda":
        return lambda step: _moved(*make(step), lambda tensor: tensor.to(device))

    # A stream of its own, so that neither the copies nor an encoder of the loader's wait for the step that computes.
    copying, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)  # type: ignore[no-untyped-call]

    def copied(tensor: Tensor) -> Tensor:
        moved = tensor.pin_memory().to(device, non_blocking=True)
        moved.record_stream(computing)  # its memory is not given away while the step still reads it
        return moved

    def make_on_cuda(step: int) -> tuple[Batch, StepNoise]:
        with torch.cuda.stream(copying):
            batch, noise = make(step)
            moved = _moved(batch, noise, copied)
        copying.synchronize()  # this thread waits, not the loop: the copies are complete when the loop gets them
        batch.recycle()
        return moved

    return make_on_cuda


def _moved(batch: Batch, noise: StepNoise, move: Callable[[Tensor], Tensor]) -> tuple[Batch, StepNoise]:
    return replace(batch, x=move(batch.x), cond=batch.cond.map(move)), noise.map(move)
