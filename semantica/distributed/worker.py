"""What every training worker runs under Ray Train: its share of the data, the newest checkpoint, the loop, and what happens
beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.collective import barrier, broadcast_from_rank_zero

from semantica.data.durable import new_attempt
from semantica.data.location import Location, explained
from semantica.data.pictures import TokensOf
from semantica.denoiser.uvit import UViT
from semantica.distributed.control import Link
from semantica.distributed.reports import Report, reporting
from semantica.distributed.runtime import ClusterConfig
from semantica.encoders.on_the_fly import tokens_on_the_fly
from semantica.evaluation.of_training import TrainingSamples
from semantica.pairs.loader import LoaderWorker, PairLoader
from semantica.tracking import Run
from semantica.training.backend import Backend, TorchBackend
from semantica.training.checkpoint import Checkpoint, Keeper, Provenance, SaveFailure, Saver, TrainState, Writers
from semantica.training.ema import Ema
from semantica.training.feed import training_loader
from semantica.training.loop import Hooks, Order, fit
from semantica.training.parallel import whole
from semantica.training.recipe import TrainConfig
from semantica.training.start import InitialWeights, TrainingInputs
from semantica.training.watch import NonFiniteError, StepReport
from semantica.training.xla import XlaMesh


class StepHook(Protocol):
    """What a caller of `train` does after steps, on every worker. pause: a step after which the training is saved and ends."""

    pause: int | None

    def __call__(self, step: int, network: UViT, ema: Ema) -> None: ...


@dataclass(frozen=True)
class Worker:
    """The worker that a `StepHook` is made on. report: reaches the training's run; only the first worker's counts.

    device: where what is no training step is computed. is_new: the training begins with this start.
    """

    rank: int
    config: TrainConfig
    encodings: Location
    tokens_of: TokensOf | None
    device: torch.device
    report: Callable[[Report], None]
    is_new: bool


@dataclass(frozen=True)
class Job:
    """A training, as Ray takes it to every worker. control: the actor `Control`. journal: where reports go first.

    hook: makes what a caller does after steps.
    """

    config: TrainConfig
    inputs: TrainingInputs
    provenance: Provenance
    checkpoints: Path
    cluster: ClusterConfig
    run: Run
    journal: Run
    control: Any
    hook: Callable[[Worker], StepHook] | None = None


def train_on_worker(job: Job) -> None:
    """What each worker runs. When asked to stop, all end after the same step; the first one says so when it has saved that step.

    After steps in a row that are not finite the group starts again from the newest checkpoint, once: what a machine did wrong does
    not come again. Data, noise and weights do, bit for bit: the second time all workers end, and the driver says why.
    """
    context, control = ray.train.get_context(), job.control
    keeper = Keeper(job.checkpoints, job.config.keep)
    with Link(control, context.get_world_rank(), context.get_world_size(), job.cluster.stall_s) as link:
        start = _newest(keeper, link.rank) or job.inputs.initial
        failed_at = ray.get(control.nonfinite_at.remote())  # read by all workers before any of them can fail
        training = _Training(job, link, keeper, start)
        try:
            training.run()
        except NonFiniteError as error:
            barrier()  # the first worker has waited for its last save: all fail together, none before it
            if failed_at is None or error.step - job.config.max_skipped > failed_at:  # not the same steps, nor the next ones
                ray.get(control.set_nonfinite_at.remote(error.step))
                raise
            again = f"it came again after going back to step {start.step if start else 0}, so it is no fault of a machine"
            ray.get(control.stop_at.remote(error.step, f"{error}; {again}"))
            return
        if training.saved_at < job.config.num_steps and link.rank == 0:
            ray.get(control.stop_at.remote(training.saved_at))


def _newest(keeper: Keeper, rank: int) -> Checkpoint | None:
    """The checkpoint that all resume from: the first worker, which alone owns the folder, finds it and reads every byte."""
    newest = keeper.resume() if rank == 0 else None
    step = broadcast_from_rank_zero(newest.step if newest else 0)
    return keeper.at(step) if rank > 0 and step else newest


class _Training:
    """One worker's part of a training: the loop, and hooks that report, draw samples and save. saved_at: the last step saved."""

    def __init__(self, job: Job, link: Link, keeper: Keeper, start: Checkpoint | InitialWeights | None) -> None:
        self.job, self.link, self.start = job, link, start
        self.saved_at = start.step if start else 0
        config = job.config
        self.backend: Backend = (
            XlaMesh(split_weights=config.compute.is_sharded) if job.cluster.use_xla else TorchBackend(ray.train.torch.get_device())
        )
        self.tokens_of = tokens_on_the_fly(job.inputs.pairs.manifest, str(self.backend.aside))
        self.report = reporting(job.journal, job.run, job.control) if link.rank == 0 else _nothing
        self.share = self.backend.sharing(config.compute)
        writers = Writers(self.share.rank, self.share.world, attempt=broadcast_from_rank_zero(new_attempt()))
        self.saver = Saver(keeper, self._say_failure, writers=writers)
        self._samples: TrainingSamples | None = None  # made when first asked for
        self._losses: list[float] = []  # of the reports since the last save
        self._on_step: StepHook | None = None

    def run(self) -> None:
        """Train from the start to the last step, or to the step at which the workers were asked to stop."""
        job, config = self.job, self.job.config
        if job.hook is not None:
            encodings, device = job.inputs.pairs.encodings, self.backend.aside
            self._on_step = job.hook(
                Worker(self.link.rank, config, encodings, self.tokens_of, device, self.report, is_new=self.saved_at == 0)
            )
        hooks = Hooks(self._say_figures, self._save, self._draw, self._on_step or _no_hook, self._order)
        with self.saver:
            fit(config, self._loader(), job.provenance, hooks, start=self.start, backend=self.backend)

    def _loader(self) -> PairLoader:
        job, cluster = self.job, self.job.cluster
        worker = LoaderWorker(self.backend.loader_rank, self.link.world, cluster.loader_mb * 2**20, cluster.loader_threads)
        return training_loader(job.config, job.inputs.pairs, worker, tokens_of=self.tokens_of)

    def _order(self, step: int) -> Order:
        if self._on_step is not None and step == self._on_step.pause:
            return Order.STOP
        return self.link.order()

    def _say_figures(self, report: StepReport) -> None:
        self.saver.check()  # a training that cannot be saved is stopped now, not at the next save
        self._losses.append(report.loss)
        self.report(Report(report.step, report.metrics()))

    def _draw(self, step: int, network: UViT, ema: Ema) -> None:
        # Sharded weights are gathered by all workers; the first draws, the others wait for it in the next step.
        is_first = self.link.rank == 0
        raw, average = whole(dict(network.named_parameters()), keep=is_first), whole(ema.values, keep=is_first)
        if is_first:
            encodings = self.job.inputs.pairs.encodings
            self._samples = self._samples or TrainingSamples(self.job.config, encodings, self.tokens_of, self.backend.aside)
            self.report(Report(step, png=self._samples.png(raw, average)))

    def _save(self, state: TrainState) -> None:
        self.saved_at = state.step
        metric = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses.clear()
        if self.share.replica == 0:  # other copies are the same
            self.saver.save(state, metric)
        elif self.backend.gathers:
            state.snapshot()

    def _say_failure(self, failure: SaveFailure) -> None:
        text = f"train: step {failure.step} was not saved: {explained(failure.error)} ({failure.in_a_row} in a row)"
        self.job.control.report.remote(Report(failure.step, warning=text))


def _nothing(report: Report) -> None:
    """Only the first worker reports."""


def _no_hook(step: int, network: UViT, ema: Ema) -> None:
    """Nothing is done after steps."""
