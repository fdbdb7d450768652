"""python -m benchmarks.sampling: guided sampling by the house's path against a plain loop around the same network, and peers.

Ancestral DDPM at w = 0.5. *plain loop*: two calls of the network a step, one a branch, keys and values of the conditioning computed
every step, nothing compiled. The house's path runs both branches as one batch and computes keys and values once a picture; each of
the two parts is also measured alone. On a GPU it is bfloat16 weights, and also compiled and captured, as SpeedConfig offers.
*sample_pictures* is the same end to end: noise keyed by sample, drawn on the host, and uint8 pictures back. The peers' networks
(benchmarks/peers.py) run in the plain loop, in the memory layout that is faster for them.

Before anything is timed, plain loop and house's path draw from the same noise in float32, and must give the same pictures. Rounds
are interleaved, figures are medians of rounds, a ratio is the median of the ratios of single rounds. On a CPU times are seconds of
the processor, on one thread. GFLOP are nominal: two whole forward passes a step, whatever a path saves of them. Peak memory holds
weights and all that a run adds: on a GPU what torch allocated, on a CPU what the resident memory of a process of its own grew by.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import tyro
from torch import Tensor, nn

from benchmarks.drawing import HOUSE, PLAIN, Scene, Way, built, drawing, guided_denoise
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
)
from benchmarks.peers import OURS, contenders, gflop
from benchmarks.record import Measured, record
from semantica.diffusion.process import Denoise, bind_with
from semantica.diffusion.samplers import ddpm, levels_of
from semantica.generation.generate import to_pixels

_GUARD_STEPS = 8
_MAX_PICTURE_DIFFERENCE = 1e-3  # float32, of pictures in [-1, 1] after _GUARD_STEPS steps
_MAX_CALL_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of one guided x_hat, relative to its norm


def check_pictures(make: Callable[[], nn.Module], scene: Scene) -> list[Measured]:
    """How far the pictures of the house's path are from the plain loop's. Raises SystemExit when they are not the same."""
    scene = replace(scene, dtype=torch.float32, num_steps=_GUARD_STEPS, batch=min(4, scene.batch))
    network, cond = built(HOUSE, make, scene), scene.conditioning()

    def draw(denoise: Denoise) -> Tensor:
        noise = scene.noise()
        return ddpm(denoise, noise.draw(), levels_of(scene.sampler, scene.schedule), noise)

    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        plain, house = draw(guided_denoise(network, PLAIN, cond)), draw(guided_denoise(network, HOUSE, cond))
        unguided = draw(bind_with(network)(cond))
        pixels = drawing(replace(HOUSE, pictures=True), network, scene)()
    difference = (plain - house).abs().max().item()
    levels = (to_pixels(plain).cpu().int() - pixels.int()).abs().max().item()
    effect = (plain - unguided).abs().mean().item()
    if effect < 10 * _MAX_PICTURE_DIFFERENCE:
        raise SystemExit(f"sampling: guidance changes the pictures by {effect:.2g} only, so that comparing them shows nothing")
    if not difference <= _MAX_PICTURE_DIFFERENCE or levels > 1:
        raise SystemExit(
            f"sampling: plain loop and house's path must agree within {_MAX_PICTURE_DIFFERENCE} and 1 level, "
            f"got {difference:.2g} and {levels}; times of different pictures cannot be compared"
        )
    return [
        Measured(
            name=f"largest difference to the plain loop's pictures, float32, {_GUARD_STEPS} steps",
            figure=difference,
            unit="of [-1, 1]",
            target=f"<= {_MAX_PICTURE_DIFFERENCE:g}",
            holds=True,
            peer="plain loop",
        ),
        Measured(
            name="sample_pictures: largest difference", figure=levels, unit="of 255", target="<= 1", holds=True, peer="plain loop"
        ),
        Measured(name="mean change by guidance in these pictures", figure=effect, unit="of [-1, 1]"),
    ]


def check_call(way: Way, network: nn.Module, plain: nn.Module, scene: Scene) -> None:
    """Raise SystemExit unless one guided x_hat of a way is the plain loop's, in the precision that is timed."""
    cond, z = scene.conditioning(), scene.noise().draw()
    logsnr = torch.linspace(-8, 8, scene.batch, device=scene.device)
    with torch.inference_mode():
        expected, got = guided_denoise(plain, PLAIN, cond)(z, logsnr), guided_denoise(network, way, cond)(z, logsnr)
    difference, allowed = ((got - expected).norm() / expected.norm()).item(), _MAX_CALL_DIFFERENCE[scene.dtype]
    print(f"{way.label}: guided x_hat differs from the plain loop's by {difference:.2g} of its norm")
    if not difference <= allowed:
        raise SystemExit(f"sampling: {way.label}: x_hat must be within {allowed} of the plain loop's, got {difference:.2g}")


@dataclass(frozen=True)
class Runner:
    """A way that is ready: its warm run, GFLOP of the forward pass of an image, peak memory (None where that cannot be)."""

    way: Way
    draw: Callable[[], Tensor]
    gflop: float
    peak_mib: float | None


def cpu_peak_mib(way: Way, scene: Scene) -> float:
    """Peak memory of one way, in this process."""
    torch.set_num_threads(1)
    make = contenders(scene.shape, only=way.contender)[way.contender]
    return peak_growth_mib(lambda: drawing(way, built(way, make, scene), scene)())


def runner(way: Way, network: nn.Module, scene: Scene, flops: float) -> Runner:
    """A way, made ready."""
    draw, peak = drawing(way, network, scene), None
    draw()
    if scene.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        draw()
        weights = sum(p.numel() * p.element_size() for p in network.parameters())
        peak = (torch.cuda.max_memory_allocated() - before + weights) / 2**20
    elif STATUS.exists():
        peak = in_a_process(cpu_peak_mib, way, scene)
    return Runner(way, draw, flops, peak)


def runners(scene: Scene, modes: tuple[bool, ...]) -> dict[str, Runner]:
    """Every way, ready: ours part by part and whole, then the peers in the plain loop."""
    made = contenders(scene.shape)
    flops = {name: gflop(make, scene.shape, training=False) for name, make in made.items()}
    eager = built(HOUSE, made[OURS], scene)
    ready: list[Runner] = []
    for way in (PLAIN, replace(PLAIN, one_batch=True), replace(PLAIN, once=True)):
        check_call(way, eager, eager, scene)
        ready.append(runner(way, eager, scene, flops[OURS]))
    for compiled in modes:
        way = replace(HOUSE, compiled=compiled)
        network = built(way, made[OURS], scene) if compiled else eager
        check_call(way, network, eager, scene)
        ready += [runner(w, network, scene, flops[OURS]) for w in (way, replace(way, pictures=True))]
    short = replace(scene, num_steps=2)
    for name in (name for name in made if name != OURS):

        def run(channels_last: bool, name: str = name) -> Callable[[], Tensor]:
            way = Way(name, channels_last=channels_last)
            return drawing(way, built(way, made[name], scene), short)

        way = Way(name, channels_last=channels_last_suits(run, scene.device))
        ready.append(runner(way, built(way, made[name], scene), scene, flops[name]))
    return {r.way.label: r for r in ready}


def main() -> None:
    """Check, measure and record."""
    settings = tyro.cli(Settings)
    if settings.device == "cpu":
        torch.set_num_threads(1)
    batch = settings.batch_of({"tiny": 256, "small-64": 128, "base": 32}, {"tiny": 8, "small-64": 1, "base": 1})
    steps = 64 if settings.device == "cuda" else 16
    scene = Scene(settings.chosen_size, batch, steps, settings.device, settings.dtype)
    measured = check_pictures(contenders(scene.shape, only=OURS)[OURS], scene)
    ready = runners(scene, settings.modes)
    product, product_gflop = matmul_ceiling(settings.device, settings.dtype)
    draws: dict[str, Callable[[], object]] = {label: runner.draw for label, runner in ready.items()}
    taken = interleaved({**draws, CEILING: product}, settings.seconds, settings.device)

    figure = product_gflop / statistics.median(taken[CEILING])
    measured.append(Measured(name=f"{CEILING} ({settings.where(batch)}, {steps} steps)", figure=figure, unit="GFLOP/s"))
    for label, r in ready.items():
        seconds, work = statistics.median(taken[label]), 2 * r.gflop * batch * steps
        share = median_of(taken[CEILING], taken[label], work / product_gflop)
        measured += [
            Measured(name=f"{label}: step", figure=1e3 * seconds / steps, unit="ms"),
            Measured(name=f"{label}: pictures", figure=batch / seconds, unit="1/s"),
            Measured(name=f"{label}: work", figure=work / seconds, unit="GFLOP/s"),
            Measured(name=f"{label}: share of the ceiling", figure=share, unit="", peer=CEILING),
        ]
        if r.peak_mib is not None:
            measured.append(Measured(name=f"{label}: peak memory", figure=r.peak_mib, unit="MiB"))
    print(record("sampling", [*measured, *verdicts(taken, ready, on_gpu=settings.device == "cuda")]))


def verdicts(taken: Mapping[str, list[float]], ready: Mapping[str, Runner], *, on_gpu: bool) -> list[Measured]:
    """Each of our ways over the plain loop; then plain loop and fastest path over each peer's plain loop, a GFLOP."""
    measured: list[Measured] = []
    ours = [label for label, r in ready.items() if r.way.contender == OURS]
    best = min((label for label in ours if not ready[label].way.pictures), key=lambda label: statistics.median(taken[label]))
    for label in (label for label in ours if label != PLAIN.label):
        speedup = median_of(taken[PLAIN.label], taken[label])
        target = None if label != best else ">= 2" if on_gpu else ">= 2 on a GPU"
        holds = speedup >= 2 if label == best and on_gpu else None
        name = f"{label} / plain loop"
        measured.append(Measured(name=name, figure=speedup, unit="x", target=target, holds=holds, peer=PLAIN.label))
    for label, r in ready.items():
        if r.way.contender != OURS:
            for own in dict.fromkeys((PLAIN.label, best)):
                ratio = median_of(taken[label], taken[own], ready[own].gflop / r.gflop)
                measured.append(Measured(name=f"{own} / {label}, GFLOP/s", figure=ratio, unit="x", peer=label))
    return measured


if __name__ == "__main__":
    main()
