"""What the denoiser's benchmarks measure with: settings of a race, seconds of interleaved runs, the matmul ceiling, peak memory."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from benchmarks.peers import Size
from semantica.config import config, require
from semantica.training.recipe import ComputeConfig, Precision, Recompute

Result = TypeVar("Result")
CEILING = "matmul ceiling"
_MIN_ROUNDS, _ROUND_SECONDS = 5, 0.5
STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@config
class Settings:
    """What is measured. None: what suits the machine."""

    size: Size | None = None  # base on a GPU, tiny without
    batch: int | None = None  # images
    seconds: float = 60.0  # of rounds, after the warm-up
    compile: bool | None = None  # also with torch.compile; on a GPU yes

    def __post_init__(self) -> None:
        require(self.batch is None or self.batch >= 1, "batch", "at least 1", self.batch)
        require(self.seconds > 0, "seconds", "positive", self.seconds)

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """The GPU if there is one."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def where(self, batch: int) -> str:
        """What figures of this run are of, for their names."""
        threads = "" if self.device == "cuda" else ", 1 thread"
        return f"{self.chosen_size}, batch {batch}, {str(self.dtype).removeprefix('torch.')}{threads}"

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products and convolutions."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    @property
    def chosen_size(self) -> Size:
        """The size asked for, or the machine's."""
        return self.size or ("base" if self.device == "cuda" else "tiny")

    def batch_of(self, on_gpu: Mapping[Size, int], on_cpu: Mapping[Size, int]) -> int:
        """The batch asked for, or the machine's for the size."""
        return self.batch or (on_gpu if self.device == "cuda" else on_cpu)[self.chosen_size]

    @property
    def modes(self) -> tuple[bool, ...]:
        """Eager, and compiled if so."""
        return (False, True) if self.compile or (self.compile is None and self.device == "cuda") else (False,)

    def compute(self, *, channels_last: bool = True, compiled: bool = False, recompute: Recompute = "none") -> ComputeConfig:
        """How a contender computes: the machine's precision, and these."""
        precision: Precision = "bfloat16" if self.dtype == torch.bfloat16 else "float32"
        return ComputeConfig(precision=precision, channels_last=channels_last, compile=compiled, recompute=recompute)


def seconds_a_call(run: Callable[[], object], calls: int, device: str) -> float:
    """How long a call takes, averaged over `calls` in a row: on a GPU by the clock, else seconds of the processor.

    A core may be shared with others, a GPU is not.
    """
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    clock = time.perf_counter if device == "cuda" else time.process_time
    wait()
    started = clock()
    for _ in range(calls):
        run()
    wait()
    return (clock() - started) / calls


def matmul_ceiling(device: str, dtype: torch.dtype) -> tuple[Callable[[], Tensor], float]:
    """The square matmul with the most FLOPs a second, and its GFLOP."""
    speeds: dict[int, float] = {}
    products: dict[int, Callable[[], Tensor]] = {}
    for side in (4096, 8192, 16384) if device == "cuda" else (512, 1024, 2048):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        products[side] = partial(torch.mm, a, b, out=torch.empty_like(a))
        calls = _calls(seconds_a_call(products[side], 2, device))
        speeds[side] = 2 * side**3 / seconds_a_call(products[side], calls, device)
    best = max(speeds, key=lambda side: speeds[side])
    return products[best], 2 * best**3 / 1e9


def _calls(seconds: float) -> int:
    return max(1, round(_ROUND_SECONDS / seconds))


def interleaved(runs: Mapping[str, Callable[[], object]], seconds: float, device: str) -> dict[str, list[float]]:
    """Seconds a call of every run, one figure a round. The runs are warm."""
    calls = {name: _calls(seconds_a_call(run, 1, device)) for name, run in runs.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    while len(taken[next(iter(runs))]) < _MIN_ROUNDS or time.perf_counter() - started < seconds:
        for name, run in runs.items():
            taken[name].append(seconds_a_call(run, calls[name], device))
    return taken


def channels_last_suits(make: Callable[[bool], Callable[[], object]], device: str) -> bool:
    """Whether what `make(channels_last)` returns is faster with that memory layout than without."""
    seconds: dict[bool, float] = {}
    for channels_last in (True, False):
        run = make(channels_last)
        run()
        seconds[channels_last] = min(seconds_a_call(run, 1, device) for _ in range(3))
    return seconds[True] < seconds[False]


def median_of(numerator: list[float], denominator: list[float], factor: float = 1.0) -> float:
    """The median over rounds of a ratio, times a factor."""
    return factor * statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def peak_growth_mib(run: Callable[[], object]) -> float:
    """MiB by which the resident memory of this process grew at most during a call (Linux)."""
    _CLEAR.write_text("5")  # the high-water mark starts from what is resident now
    before = _resident_kib("VmRSS")
    run()
    return (_resident_kib("VmHWM") - before) / 1024


def _resident_kib(field: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))


def in_a_process(function: Callable[..., Result], *arguments: object) -> Result:
    """What the function returns in a new process, whose memory nothing else has touched."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
