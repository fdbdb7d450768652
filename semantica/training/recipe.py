"""The training recipe: every number of the paper's training as a field, with the paper's value as default (method.md §4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from semantica.conditioning.signals import IMAGES, SIMILARITY
from semantica.config import config, free, require
from semantica.denoiser.configs import DenoiserConfig
from semantica.diffusion.settings import Prediction, ScheduleConfig, Weighting
from semantica.errors import ConfigError

Precision = Literal["float32", "bfloat16"]
Recompute = Literal["none", "transformer", "all"]
Parallel = Literal["ddp", "fsdp", "hsdp"]


@config
class OptimizerConfig:
    """Adam as in the paper, §5.4; warm-up and clipping as in simple diffusion.

    cooldown_steps: the rate falls linearly to 0 over the last steps. 0 is the paper's constant rate; short runs gain from it.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 10_000
    cooldown_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-12
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "learning_rate", "positive", self.learning_rate)
        require(self.warmup_steps >= 0, "warmup_steps", "0 or more", self.warmup_steps)
        require(self.cooldown_steps >= 0, "cooldown_steps", "0 or more", self.cooldown_steps)
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, "in [0, 1)", getattr(self, name))
        require(self.eps >= 0, "eps", "0 or more", self.eps)
        require(self.max_grad_norm > 0, "max_grad_norm", "positive", self.max_grad_norm)

    def rate(self, step: int, num_steps: int) -> float:
        """The learning rate of `step` (from 0) of a run of `num_steps`: linear warm-up, constant, linear cool-down."""
        warm = (step + 1) / max(1, self.warmup_steps)
        cool = (num_steps - step) / max(1, self.cooldown_steps)
        return self.learning_rate * min(1.0, warm, cool)


@config
class EmaConfig:
    """Polyak averaging: decay of the paper; the decay itself warms up as (1 + n) / (warmup + n) after n steps."""

    decay: float = 0.9999
    warmup: int = 10

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, "decay", "in [0, 1)", self.decay)
        require(self.warmup >= 1, "warmup", "1 or more", self.warmup)

    def at(self, num_updates: int) -> float:
        """The decay of the update after `num_updates` earlier ones."""
        return min(self.decay, (1 + num_updates) / (self.warmup + num_updates))


@dataclass(frozen=True)
class Dropout:
    """How often an example is trained without signals: `rate` without all of `together`, and without one signal `alone`."""

    rate: float
    together: tuple[str, ...]
    alone: Mapping[str, float]


@config
class KeepConfig:
    """What stays while training. A checkpoint stays when any of the rules wants it. All numbers are choices [C]."""

    last: int = 2  # the newest ones; a second one is what is left when the newest is damaged
    best: int = 0  # those with the best metric: `semantica train` gives the mean loss of the reports since the save before
    best_is: Literal["lowest", "highest"] = "lowest"  # a loss or a Fréchet distance: lowest
    every_steps: int = 0  # those of a step that this divides, for good; 0: none

    def __post_init__(self) -> None:
        require(self.last >= 1, "last", "at least 1", self.last)
        require(self.best >= 0, "best", "0 or more", self.best)
        require(self.every_steps >= 0, "every_steps", "0 or more", self.every_steps)

    def steps(self, metrics: Mapping[int, float | None]) -> frozenset[int]:
        """The steps whose checkpoints stay, of those given as step -> metric. Of equal metrics the later is better; NaN is none."""
        steps = sorted(metrics)
        sign = 1.0 if self.best_is == "lowest" else -1.0
        measured = {step: value for step, value in metrics.items() if value is not None and not math.isnan(value)}
        best = sorted(measured, key=lambda step: (sign * measured[step], -step))[: self.best]
        every = [step for step in steps if self.every_steps and step % self.every_steps == 0]
        return frozenset([*steps[-self.last :], *best, *every])


@config
class ComputeConfig:
    """Settings of one worker's arithmetic, and of what it holds. The defaults suit CPUs; the presets for GPUs say what suits them.

    precision: of products and convolutions, by autocast. Weights, their gradients and the average of these over the workers, loss,
    Adam and EMA are float32 always. recompute: which blocks keep their input only, and run again in the backward pass.
    parallel: with ddp every worker holds all of weights, gradients, Adam's moments and EMA; with fsdp its rows of them; with hsdp
    each group of shard_workers workers shares one copy, such as those of one machine.

    Only precision decides what is trained. The others may change when a training resumes: what they change is the order in which
    float32 numbers are added, so weights agree but for rounding. recompute changes no bit.
    """

    precision: Precision = "float32"
    channels_last: bool = free(True)
    compile: bool = free(False)  # the network as one graph, with sharded weights each block; a minute at the start of every worker
    recompute: Recompute = free("none")
    parallel: Parallel = free("ddp")
    shard_workers: int | None = free(None)  # with hsdp, and only there: how many workers share one copy

    def __post_init__(self) -> None:
        fits = self.shard_workers is None if self.parallel != "hsdp" else (self.shard_workers or 0) >= 2
        expected = "2 or more with parallel hsdp" if self.parallel == "hsdp" else f"None with parallel {self.parallel}"
        require(fits, "shard_workers", expected, self.shard_workers)

    @property
    def is_sharded(self) -> bool:
        """True when a worker of several holds a part of the state only."""
        return self.parallel != "ddp"

    def check_workers(self, num_workers: int) -> None:
        """Raise ConfigError when so many workers cannot share the state as `parallel` says."""
        if self.shard_workers is not None and num_workers % self.shard_workers:
            raise ConfigError(
                f"train.compute.shard_workers must divide cluster.num_workers = {num_workers}, got {self.shard_workers}; "
                "change either, or train.compute.parallel"
            )


@config
class TrainConfig:
    """One training run: what is trained, on which draws, for how long. Where it runs is ClusterConfig's.

    A training that resumes may have other values of the fields that are `free`, and a larger num_steps.
    """

    denoiser: DenoiserConfig
    schedule: ScheduleConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    num_steps: int = 300_000
    batch_size: int = 2048  # pairs, over all workers
    num_lanes: int = 64  # streams that the data is dealt to; every number of workers that divides it draws the same batches
    window_groups: int = 16  # row groups of a lane that are shuffled together, and kept in memory
    prediction: Prediction = "v"  # what the network outputs; the reported loss is that of eps for all three
    loss: Weighting = "eps"  # how the noise levels are weighted (`diffusion.process.loss_weight`)
    loss_bias: float = 0.0  # logsnr, read with the loss sigmoid
    conditioning_dropout: float = 0.1  # share of the examples that are trained without their condition
    similarity_dropout: float = 0.1  # share of the examples that do not say how similar; read by denoisers that take it
    # Slots of a worker that pass through the network at once; None: all. Saves memory. Sums over the batch are rounded in another
    # order, and a denoiser with dropout draws other masks, as with another number of workers.
    micro_batch_size: int | None = free(None)
    max_skipped: int = free(10)  # steps in a row whose loss or gradients are not finite, before training stops; all are skipped
    compute: ComputeConfig = ComputeConfig()
    seed: int = 0
    prefetch: int = free(2)  # batches that are made ahead while a step computes, each in memory; 0: none
    log_every: int = free(100)  # steps
    sample_every: int | None = free(None)  # steps, after which raw and EMA weights draw a few pictures
    num_samples: int = free(8)  # of each, of held-out conditioning images that stay the same
    peak_tflops: float | None = free(None)  # of one device, for MFU; None: measured on CUDA when training starts, no MFU on a CPU
    checkpoint_every: int = free(5_000)  # steps
    keep: KeepConfig = free(KeepConfig())  # while training; the last one stays
    # A checkpoint, an output of semantica train, a release or its ORG/NAME on a hub, whose weights training begins with, at step 0;
    # "": random ones. Which of a checkpoint's weights; a release has EMA weights only. Both are free: the hash of the weights is
    # among the inputs.
    init_from: str = free("")
    init_weights: Literal["ema", "raw"] = free("ema")

    def __post_init__(self) -> None:
        counts = ("num_steps", "batch_size", "num_lanes", "log_every", "checkpoint_every", "window_groups")
        for name in (*counts, "max_skipped", "num_samples"):
            require(getattr(self, name) > 0, name, "positive", getattr(self, name))
        for name in ("micro_batch_size", "sample_every", "peak_tflops"):
            value = getattr(self, name)
            require(value is None or value > 0, name, "positive or None", value)
        biased = self.loss == "sigmoid" or self.loss_bias == 0
        require(biased, "loss_bias", f"0 with loss {self.loss}", self.loss_bias)
        require(self.prefetch >= 0, "prefetch", "0 or more", self.prefetch)
        for name in ("conditioning_dropout", "similarity_dropout"):
            require(0 <= getattr(self, name) < 1, name, "in [0, 1)", getattr(self, name))
        require(0 <= self.seed < 2**31, "seed", "in [0, 2^31)", self.seed)
        multiple = self.batch_size % self.num_lanes == 0
        require(multiple, "batch_size", f"a multiple of num_lanes = {self.num_lanes}", self.batch_size)
        same = self.denoiser.resolution_px == self.schedule.resolution_px
        require(same, "schedule.resolution_px", f"{self.denoiser.resolution_px} as the denoiser's", self.schedule.resolution_px)

    @property
    def dropout(self) -> Dropout:
        """The dropout of the denoiser's signals. The order of `alone` is that of the draws: a further signal comes last."""
        signals = self.denoiser.signals
        together = (IMAGES, SIMILARITY, *(signal.name for signal in signals if signal.is_guided))
        alone = {SIMILARITY: self.similarity_dropout} | {signal.name: signal.dropout for signal in signals}
        return Dropout(self.conditioning_dropout, together, alone)

    def is_due(self, every: int | None, done: int) -> bool:
        """Whether what comes every so many steps comes after `done` of them: at the end too; None comes never."""
        return every is not None and (done % every == 0 or done == self.num_steps)
