"""python -m benchmarks.checkpoint: how long a save holds the training, written in the foreground against in the background.

The state is that of a denoiser of the chosen size after one update: weights, EMA and both moments of Adam, 16 bytes a parameter.
Both ways go through the same Saver to the same disk, in an order that alternates. A save writes and syncs every file, reads the new
checkpoint back and deletes the one before. Held is the time by the clock that `save` takes, since a save waits for a disk; the
first save, which takes the host memory, is a figure of its own. Processor time is that of the whole process from the call of a
background save until it is on the disk: what a training that computes on the same cores can lose to it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import tyro

from benchmarks.measure import Settings
from benchmarks.peers import denoiser_config
from benchmarks.record import Measured, record
from semantica.denoiser.uvit import UViT
from semantica.diffusion.settings import ScheduleConfig
from semantica.training.checkpoint import Keeper, Provenance, SaveFailure, Saver, TrainState, open_checkpoint
from semantica.training.ema import Ema
from semantica.training.recipe import KeepConfig, TrainConfig
from semantica.training.step import make_optimizer, update

MAX_HELD = 0.25  # of the foreground's
_MIN_ROUNDS = 5


def trained_state(settings: Settings) -> TrainState:
    """The state of a training after one update by random gradients."""
    shape = denoiser_config(settings.chosen_size)
    config = TrainConfig(denoiser=shape, schedule=ScheduleConfig(resolution_px=shape.resolution_px))
    network = UViT(shape).to(settings.device)
    optimizer, ema = make_optimizer(network, config.optimizer), Ema(network, config.ema)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    update(network, optimizer, config.optimizer, 1e-4)
    ema.update()
    return TrainState(network, ema, optimizer, config, 1, Provenance({}, "", ""))


def failed(failure: SaveFailure) -> None:
    """A benchmark on a full disk measures nothing."""
    raise RuntimeError(f"checkpoint: step {failure.step} was not saved: {failure.error}")


def seconds_of(run: Callable[[], object]) -> float:
    """How long a call takes by the clock: a save waits for a disk, which takes no time of the processor."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


class Bench:
    """The savers of both ways, and what was measured."""

    def __init__(self, folder: Path, state: TrainState) -> None:
        self.state = state
        ways = {"foreground": False, "background": True}
        self.savers = {
            way: Saver(Keeper(folder / way, KeepConfig(last=1)), failed, background=background) for way, background in ways.items()
        }
        self.held: dict[str, list[float]] = {way: [] for way in ways}
        self.processor: dict[str, list[float]] = {way: [] for way in ways}
        self.step = 0

    def round(self, *, backwards: bool) -> None:
        """One save each way."""
        for way in sorted(self.savers, reverse=backwards):
            saver = self.savers[way]
            self.step += 1
            state = replace(self.state, step=self.step)
            before = time.process_time()
            self.held[way].append(seconds_of(partial(saver.save, state)))
            saver.wait()
            self.processor[way].append(time.process_time() - before)
            saver.check()


def main() -> None:
    """Measure and record."""
    settings = tyro.cli(Settings)
    torch.set_num_threads(1)
    state = trained_state(settings)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), state)
        bench.round(backwards=False)
        first = {way: held.pop() for way, held in bench.held.items()}
        started, backwards = time.perf_counter(), True
        while len(bench.held["background"]) < _MIN_ROUNDS or time.perf_counter() - started < settings.seconds:
            bench.round(backwards=backwards)
            backwards = not backwards
        newest = bench.savers["foreground"].keeper.newest()
        assert newest is not None
        size = sum(file.num_bytes for file in newest.files)
        opening = statistics.median(seconds_of(partial(open_checkpoint, newest.folder)) for _ in range(_MIN_ROUNDS))
    held = {way: statistics.median(seconds) for way, seconds in bench.held.items()}
    ratio = statistics.median(b / f for b, f in zip(bench.held["background"], bench.held["foreground"], strict=True))
    print(
        record(
            "checkpoint", _figures(settings, first, held, ratio, statistics.median(bench.processor["background"]), size, opening)
        )
    )


def _figures(
    settings: Settings,
    first: dict[str, float],
    held: dict[str, float],
    ratio: float,
    processor: float,
    size: int,
    opening: float,
) -> list[Measured]:
    of = f"{settings.chosen_size}, {size / 1e6:.0f} MB"
    return [
        *(Measured(name=f"held by a save in the {way} ({of})", figure=1000 * held[way], unit="ms") for way in held),
        Measured(
            name=f"held in the background, of the foreground ({of})",
            figure=ratio,
            unit="share",
            target=f"at most {MAX_HELD}",
            holds=ratio <= MAX_HELD,
            peer="foreground",
        ),
        Measured(name=f"held by the first save in the background ({of})", figure=1000 * first["background"], unit="ms"),
        Measured(name=f"processor time of a save ({of})", figure=1000 * processor, unit="ms"),
        Measured(name=f"saved in the foreground ({of})", figure=size / 1e6 / held["foreground"], unit="MB/s"),
        Measured(name=f"opened, every byte hashed ({of})", figure=size / 1e6 / opening, unit="MB/s"),
    ]


if __name__ == "__main__":
    main()
