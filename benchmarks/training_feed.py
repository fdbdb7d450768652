"""Training from the loader against the same steps on batches in memory, for benchmarks.loader.

In: the denoiser's size and where it trains. Out: the share of the speed that is left when batches come from files. Both ways take
the same steps of the training loop by its own functions; only where (batch, noise) come from differs. The feed stays open over all
rounds, as in a training: while the other way runs, it has made what it may make ahead, and it is as far ahead when its round ends.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.jpegs import Corpus, write_encodings
from benchmarks.peers import Size, denoiser_config
from benchmarks.record import Measured
from semantica.diffusion.settings import ScheduleConfig
from semantica.pairs.loader import Batch, LoaderWorker, PairLoader, open_pairs
from semantica.training.compute import prepare
from semantica.training.ema import Ema
from semantica.training.feed import feed, training_loader
from semantica.training.loop import initial_network
from semantica.training.recipe import ComputeConfig, TrainConfig
from semantica.training.step import StepNoise, add_gradients, make_optimizer, update

Made = tuple[Batch, StepNoise]
_NUM_PICTURES, _REST_S = 3072, 1.0
TARGETS = {"cpu": 0.95, "cuda": 0.98}


class Training:
    """A network in training; `training(step, made)` is one step of the loop."""

    def __init__(self, config: TrainConfig, device: str) -> None:
        self.config, self.device = config, device
        self.network = prepare(initial_network(config).to(device).train(), config.compute)
        self.optimizer, self.ema = make_optimizer(self.network, config.optimizer), Ema(self.network, config.ema)

    def __call__(self, step: int, made: Made) -> None:
        """What semantica.training.loop does with a batch."""
        add_gradients(self.network, *made, step, self.config)
        update(self.network, self.optimizer, self.config.optimizer, 1e-4)
        self.ema.update()

    def wait(self) -> None:
        """Until the device has done what it was asked."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def train_config(size: Size, device: str, batch: int) -> TrainConfig:
    """The recipe of a size with the paper's defaults; on a GPU in bfloat16."""
    shape = denoiser_config(size)
    compute = ComputeConfig(precision="bfloat16" if device == "cuda" else "float32")
    schedule = ScheduleConfig(resolution_px=shape.resolution_px)
    return TrainConfig(denoiser=shape, schedule=schedule, batch_size=batch, num_lanes=4, window_groups=2, compute=compute)


def corpus_of(config: TrainConfig) -> Corpus:
    """Pictures at twice the resolution of training, but not above the 256 px that crawls are stored at, with tokens."""
    shape = config.denoiser
    side = max(shape.resolution_px, min(256, 2 * shape.resolution_px))
    return Corpus(_NUM_PICTURES, side, (shape.num_tokens, shape.token_dim), shape.pooled_dim)


def loader_of(folder: Path, config: TrainConfig, num_threads: int) -> PairLoader:
    """Over a corpus of which half fits into its memory, with all windows: as in a crawl, nothing is there from an epoch before."""
    shape = config.denoiser
    return training_loader(
        config,
        open_pairs(folder / "encodings", folder / "selection"),
        LoaderWorker(max_open_bytes=_NUM_PICTURES * shape.num_tokens * shape.token_dim, num_threads=num_threads),
    )


def training_share(
    folder: Path, size: Size, device: str, batch: int, steps: int, rounds: int, num_threads: int
) -> Iterator[Measured]:
    """Images a second both ways, and the first over the second."""
    config = train_config(size, device, batch)
    write_encodings(folder, corpus_of(config))
    training = Training(config, device)
    taken: dict[str, list[float]] = {"in memory": [], "from the loader": []}
    with feed(loader_of(folder, config, num_threads), config, range(10**9), device) as made:
        held = [next(made) for _ in range(steps)]
        for number in range(rounds + 1):
            for way in sorted(taken, reverse=number % 2 == 1):
                time.sleep(_REST_S)  # the feed has made what it may
                training.wait()
                started = time.perf_counter()
                for step in range(steps):
                    batch, noise = held[step] if way == "in memory" else next(made)
                    training(step, (batch, noise))
                    if way == "from the loader":
                        batch.recycle()
                training.wait()
                if number:  # the first warms up
                    taken[way].append(time.perf_counter() - started)
    of = f"training, {size}, batch {batch}, {device}" + (f", {torch.get_num_threads()} threads" if device == "cpu" else "")
    for way, seconds in taken.items():
        yield Measured(name=f"{of}, {way}", figure=batch * steps / statistics.median(seconds), unit="images/s")
    share = statistics.median(a / b for a, b in zip(taken["in memory"], taken["from the loader"], strict=True))
    yield Measured(
        name=f"{of}, from the loader / in memory",
        figure=share,
        unit="share",
        target=f">= {TARGETS[device]}",
        holds=share >= TARGETS[device],
        peer="the same steps on data in memory",
    )
