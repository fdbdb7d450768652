"""python -m benchmarks.checkpoint: how long a save holds the training, written in the foreground against in the background.

The state is that of a denoiser of the chosen size after one update: weights, EMA and both moments of Adam, 16 bytes a parameter.
Both ways go through the same Saver to the same disk, in an order that alternates. A save writes and syncs every file, reads the new
checkpoint back and deletes the one before. Held is the time that `save` takes; the first save, which takes the host memory, is a
figure of its own. Steps beside a save: square matmuls a second on one thread while the writer works, against the same right after,
without it: what the writer leaves to a CPU that computes.
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
from semantica.diffusion.schedule import ScheduleConfig
from semantica.training.checkpoint import Provenance, TrainState, open_checkpoint
from semantica.training.ema import Ema
from semantica.training.keeper import Keeper
from semantica.training.recipe import TrainConfig
from semantica.training.retention import KeepConfig
from semantica.training.saver import SaveFailure, Saver
from semantica.training.step import make_optimizer, update

MAX_HELD = 0.25  # of the foreground's
_MIN_ROUNDS = 5
_MATMUL = 512


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


def matmuls_a_second(until: Callable[[], bool]) -> float:
    """Matmuls a second of this thread until something holds, at least one."""
    a = torch.randn(_MATMUL, _MATMUL)
    out, calls, started = torch.empty_like(a), 0, time.perf_counter()
    while calls == 0 or not until():
        torch.mm(a, a, out=out)
        calls += 1
    return calls / (time.perf_counter() - started)


def for_seconds(seconds: float) -> Callable[[], bool]:
    """What holds after so many seconds from now."""
    deadline = time.perf_counter() + seconds
    return lambda: time.perf_counter() > deadline


def is_done(saver: Saver) -> bool:
    """Whether no save is in flight."""
    return not saver.in_flight


class Bench:
    """The savers of both ways, and what was measured."""

    def __init__(self, folder: Path, state: TrainState) -> None:
        self.state = state
        ways = {"foreground": False, "background": True}
        self.savers = {
            way: Saver(Keeper(folder / way, KeepConfig(last=1)), failed, background=background) for way, background in ways.items()
        }
        self.held: dict[str, list[float]] = {way: [] for way in ways}
        self.beside: list[float] = []
        self.step = 0

    def round(self, *, backwards: bool) -> None:
        """One save each way, and what the background one leaves to who computes."""
        for way in sorted(self.savers, reverse=backwards):
            saver = self.savers[way]
            saver.wait()
            self.step += 1
            state = replace(self.state, step=self.step)
            self.held[way].append(seconds_of(partial(saver.save, state)))
            if saver.background:
                beside = matmuls_a_second(partial(is_done, saver))
                self.beside.append(beside / matmuls_a_second(for_seconds(1.0)))
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
        bench.beside.clear()
        started, backwards = time.perf_counter(), True
        while len(bench.beside) < _MIN_ROUNDS or time.perf_counter() - started < settings.seconds:
            bench.round(backwards=backwards)
            backwards = not backwards
        newest = bench.savers["foreground"].keeper.newest()
        assert newest is not None
        size = sum(file.num_bytes for file in newest.files)
        opening = statistics.median(seconds_of(partial(open_checkpoint, newest.folder)) for _ in range(_MIN_ROUNDS))
    held = {way: statistics.median(seconds) for way, seconds in bench.held.items()}
    ratio = statistics.median(b / f for b, f in zip(bench.held["background"], bench.held["foreground"], strict=True))
    print(record("checkpoint", _figures(settings, first, held, ratio, statistics.median(bench.beside), size, opening)))


def _figures(
    settings: Settings,
    first: dict[str, float],
    held: dict[str, float],
    ratio: float,
    beside: float,
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
        Measured(name=f"steps beside a save ({of})", figure=beside, unit="share", peer="no save"),
        Measured(name=f"saved in the foreground ({of})", figure=size / 1e6 / held["foreground"], unit="MB/s"),
        Measured(name=f"opened, every byte hashed ({of})", figure=size / 1e6 / opening, unit="MB/s"),
    ]


if __name__ == "__main__":
    main()
