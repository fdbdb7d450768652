"""python -m benchmarks.train_step: the training step of the denoiser against peers of like compute, and against the matmul ceiling.

A step is diffusion, forward, loss, backward, clipping, Adam and EMA, by the house's own functions for all: a peer is only another
network (benchmarks/peers.py) with the same batch, optimizer, precision and choice of torch.compile, in the memory layout that is
faster for it. On a CPU float32 on one thread, and times are seconds of the processor; on a GPU bfloat16 autocast over float32
weights, eager and compiled. The batch is there already: no loader is measured.

Rounds are interleaved, figures are medians of rounds, a ratio is the median of the ratios of single rounds; warm-up (compilation
too) is left out. The ceiling is the fastest square matmul of the dtype, sustained, measured in every round. Peak memory holds
weights, optimizer, EMA and activations: on a GPU what torch allocated, on a CPU what the resident memory of a process of its own
grew by over three steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import tyro
from torch import nn

from benchmarks.measure import (
    CEILING,
    STATUS,
    Settings,
    channels_last_suits,
    in_a_process,
    interleaved,
    matmul_ceiling,
    median_of,
    peak_growth_mib,
    seconds_a_call,
)
from benchmarks.peers import OURS, Size, contenders, denoiser_config, gflop, prepared, random_conditioning, settled
from benchmarks.record import Measured, record
from semantica.conditioning.signals import IMAGES
from semantica.denoiser.configs import DenoiserConfig
from semantica.diffusion.settings import ScheduleConfig
from semantica.training.compute import autocast
from semantica.training.ema import Ema
from semantica.training.recipe import ComputeConfig, Dropout, EmaConfig, OptimizerConfig
from semantica.training.step import make_optimizer, step_loss, step_noise, update


@dataclass(frozen=True)
class Way:
    """One line of the race: a contender and how it computes."""

    contender: str
    compute: ComputeConfig

    @property
    def label(self) -> str:
        """Its name in the table."""
        recomputed = "" if self.compute.recompute == "none" else ", recomputed"
        return self.contender + (", compiled" if self.compute.compile else "") + recomputed


class Training:
    """A network in training; calling it is one step, always on the same batch."""

    def __init__(self, network: nn.Module, way: Way, shape: DenoiserConfig, batch: int, device: str) -> None:
        side = shape.resolution_px
        self.way, self.device = way, device
        self.network = prepared(settled(network.to(device)).train(), way.compute)
        self.optimizer, self.ema = make_optimizer(self.network, OptimizerConfig()), Ema(self.network, EmaConfig())
        self.schedule = ScheduleConfig(resolution_px=side)
        self.x = torch.randn(batch, 3, side, side, device=device).clamp(-1, 1)
        self.cond = random_conditioning(shape, batch, device)
        self.noise = step_noise(0, 0, range(batch), (3, side, side), Dropout(0.1, (IMAGES,), {})).to(device)

    def __call__(self) -> None:
        """One step, as the training loop makes it."""
        with autocast(self.way.compute, self.device):
            loss = step_loss(self.network, self.x, self.cond, self.noise, self.schedule)
        torch.autograd.backward(loss.mean())
        update(self.network, self.optimizer, OptimizerConfig(), 1e-4)
        self.ema.update()


def cpu_peak_mib(way: Way, size: Size, batch: int) -> float:
    """Peak memory of the training of one contender, in this process."""
    torch.set_num_threads(1)
    shape = denoiser_config(size)
    make = contenders(shape, only=way.contender)[way.contender]

    def train() -> None:
        training = Training(make(), way, shape, batch, "cpu")
        for _ in range(3):
            training()

    return peak_growth_mib(train)


@dataclass(frozen=True)
class Runner:
    """A contender that is ready: warm, its GFLOP of an image counted, its peak memory measured (None where that cannot be)."""

    way: Way
    training: Training
    gflop: float
    peak_mib: float | None


def runner(way: Way, make: Callable[[], nn.Module], shape: DenoiserConfig, batch: int, settings: Settings) -> Runner:
    """A contender, made ready."""
    on_gpu = settings.device == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else 0
    training = Training(make(), way, shape, batch, settings.device)
    training()
    peak = None
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        seconds_a_call(training, 3, "cuda")
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        torch.cuda.empty_cache()
    elif STATUS.exists():
        peak = in_a_process(cpu_peak_mib, way, settings.chosen_size, batch)
    return Runner(way, training, gflop(make, shape, training=True), peak)


def runners(shape: DenoiserConfig, batch: int, settings: Settings) -> dict[str, Runner]:
    """Every contender in every mode, ready; ours also with every block recomputed."""
    ready: dict[str, Runner] = {}
    for contender, make in contenders(shape).items():

        def step(channels_last: bool, contender: str = contender, make: Callable[[], nn.Module] = make) -> Training:
            return Training(make(), Way(contender, settings.compute(channels_last=channels_last)), shape, batch, settings.device)

        # A peer gets the layout that suits it; ours has the one that users get.
        channels_last = contender == OURS or channels_last_suits(step, settings.device)
        ways = [Way(contender, settings.compute(channels_last=channels_last, compiled=mode)) for mode in settings.modes]
        if contender == OURS:
            ways.append(Way(contender, settings.compute(compiled=settings.modes[-1], recompute="all")))
        ready |= {way.label: runner(way, make, shape, batch, settings) for way in ways}
    return ready


def main() -> None:
    """Measure and record."""
    settings = tyro.cli(Settings)
    if settings.device == "cpu":
        torch.set_num_threads(1)
    batch = settings.batch_of({"tiny": 1024, "small-64": 256, "base": 32}, {"tiny": 32, "small-64": 1, "base": 1})
    ready = runners(denoiser_config(settings.chosen_size), batch, settings)
    product, product_gflop = matmul_ceiling(settings.device, settings.dtype)
    steps: dict[str, Callable[[], object]] = {label: runner.training for label, runner in ready.items()}
    taken = interleaved({**steps, CEILING: product}, settings.seconds, settings.device)

    figure = product_gflop / statistics.median(taken[CEILING])
    measured = [Measured(name=f"{CEILING} ({settings.where(batch)})", figure=figure, unit="GFLOP/s")]
    shares: dict[str, float] = {}
    for label, runner in ready.items():
        seconds, work = statistics.median(taken[label]), runner.gflop * batch
        shares[label] = median_of(taken[CEILING], taken[label], work / product_gflop)
        measured += [
            Measured(name=f"{label}: an image in training", figure=runner.gflop, unit="GFLOP"),
            Measured(name=f"{label}: step", figure=1e3 * seconds, unit="ms"),
            Measured(name=f"{label}: speed", figure=batch / seconds, unit="images/s"),
            Measured(name=f"{label}: work", figure=work / seconds, unit="GFLOP/s"),
            Measured(name=f"{label}: share of the ceiling", figure=shares[label], unit="", peer=CEILING),
        ]
        if runner.peak_mib is not None:
            measured.append(Measured(name=f"{label}: peak memory", figure=runner.peak_mib, unit="MiB"))
    asked = settings.chosen_size == "base" and settings.device == "cuda"
    print(record("train_step", [*measured, *verdicts(taken, ready, shares, asked=asked)]))


def verdicts(
    taken: Mapping[str, list[float]], ready: Mapping[str, Runner], shares: Mapping[str, float], *, asked: bool
) -> list[Measured]:
    """Ours over each peer, an image and a GFLOP, in each mode; then our best over the ceiling and over the best peer, a GFLOP.

    asked: whether this is what the targets are for, the base size on a GPU.
    """
    measured: list[Measured] = []
    ours = {
        r.way.compute.compile: label for label, r in ready.items() if r.way.contender == OURS and r.way.compute.recompute == "none"
    }
    for label, peer in ((label, r) for label, r in ready.items() if r.way.contender != OURS):
        own = ours[peer.way.compute.compile]
        images, gflops = median_of(taken[label], taken[own]), ready[own].gflop / peer.gflop
        measured.append(Measured(name=f"{own} / {label}, images/s", figure=images, unit="x", peer=label))
        measured.append(Measured(name=f"{own} / {label}, GFLOP/s", figure=images * gflops, unit="x", peer=label))
    best = max(ours.values(), key=lambda label: shares[label])
    rival = max((label for label, r in ready.items() if r.way.contender != OURS), key=lambda label: shares[label])
    ratio = median_of(taken[rival], taken[best], ready[best].gflop / ready[rival].gflop)
    for name, figure, target, unit, against in (
        ("share of the ceiling", shares[best], 0.5, "", CEILING),
        ("over the best peer, GFLOP/s", ratio, 1.5, "x", rival),
    ):
        wanted = f">= {target}" if asked else f">= {target} at base on a GPU"
        holds = figure >= target if asked else None
        measured.append(Measured(name=f"{best}, {name}", figure=figure, unit=unit, target=wanted, holds=holds, peer=against))
    return measured


if __name__ == "__main__":
    main()
