"""What every training worker runs under Ray Train: its share of the data, the newest checkpoint, the loop, and the hooks that tell
the driver and the disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.collective import barrier, broadcast_from_rank_zero

from semantica.config import from_dict
from semantica.data.dataset import read_manifest
from semantica.data.durable import new_attempt
from semantica.data.location import explained, location
from semantica.denoiser.uvit import UViT
from semantica.distributed.training_control import Orders, Pulse
from semantica.distributed.training_figures import Points
from semantica.distributed.training_history import Journal
from semantica.distributed.training_pictures import TrainingSamples
from semantica.distributed.training_reports import Reporter
from semantica.encoders.on_the_fly import tokens_on_the_fly
from semantica.pairs.loader import LoaderWorker
from semantica.training.backend import Backend, TorchBackend
from semantica.training.checkpoint import Checkpoint, Keeper, Provenance, SaveFailure, Saver, TrainState
from semantica.training.ema import Ema
from semantica.training.loader import training_loader
from semantica.training.loop import Hooks, Order, fit
from semantica.training.parallel import whole
from semantica.training.recipe import TrainConfig
from semantica.training.start import InitialWeights, initial_weights
from semantica.training.watch import NonFiniteError, StepReport
from semantica.training.xla import XlaMesh


def train_on_worker(job: dict[str, Any]) -> None:
    """What each worker runs: the loader of its share, the newest checkpoint, the loop. `job` is plain data and two actors.

    Asked to stop, all workers end after the same step, and the first one, when it has saved that, says so.

    After steps in a row that are not finite the group starts again from the newest checkpoint, once: what a machine did wrong does
    not come again. Data, noise and weights do, bit for bit: the second time all workers end, and the driver says why.
    """
    context = ray.train.get_context()
    with Pulse(job["control"], context.get_world_rank(), context.get_world_size(), job["stall_s"]) as pulse:
        _train(job, pulse)


def _train(job: dict[str, Any], pulse: Pulse) -> None:
    config = from_dict(TrainConfig, job["config"])
    mailbox = job["mailbox"]
    keeper = Keeper(Path(job["checkpoints"]), config.keep)
    start = _newest(keeper) or initial_weights(config, verify=False)  # the driver has compared the hashes
    first = start.step if start else 0
    failed_at = ray.get(mailbox.last_failure.remote())  # read by all workers before any of them can fail
    try:
        reached = _fit(config, job, keeper, start, pulse)
        if reached < config.num_steps and pulse.rank == 0:
            ray.get(pulse.control.set_stopped.remote(reached))
    except NonFiniteError as error:
        barrier()  # the first worker has waited for its last save: all fail together, none before it
        if failed_at is None or error.step - config.max_skipped > failed_at:  # not the same steps, nor the next ones
            ray.get(mailbox.fail.remote(error.step))
            raise
        ray.get(mailbox.stop.remote(f"{error}; it came again after going back to step {first}, so it is no fault of a machine"))


def _newest(keeper: Keeper) -> Checkpoint | None:
    """The checkpoint that all go on from: the first worker, which alone owns the folder, says which."""
    rank = ray.train.get_context().get_world_rank()
    newest = keeper.resume() if rank == 0 else None
    step = broadcast_from_rank_zero(newest.step if newest else 0)
    return keeper.at(step) if rank > 0 and step else newest


def _fit(config: TrainConfig, job: dict[str, Any], keeper: Keeper, start: Checkpoint | InitialWeights | None, pulse: Pulse) -> int:
    """The step of the last checkpoint: the last of all, or an earlier one when the training was asked to stop."""
    rank, world = pulse.rank, pulse.world
    backend: Backend = (
        XlaMesh(split_weights=config.compute.is_sharded) if job["use_xla"] else TorchBackend(ray.train.torch.get_device())
    )
    device = backend.aside
    mailbox = job["mailbox"]
    encodings = location(job["encodings"])
    tokens_of = tokens_on_the_fly(read_manifest(encodings, "encodings"), str(device))
    loader = training_loader(
        config,
        encodings,
        location(job["selection"]),
        LoaderWorker(backend.loader_rank, world, job["loader_mb"] * 2**20, job["loader_threads"]),
        tokens_of=tokens_of,
    )
    samples: list[TrainingSamples] = []  # made when first asked for
    recent: list[float] = []  # losses of the reports since the last save
    reporter = Reporter(mailbox, job["run"], Journal(Path(job["journal"]))) if rank == 0 else None
    orders = Orders(pulse)
    reached = start.step if start else 0
    points = Points(job["trial"], config, encodings, tokens_of, device, reporter, pulse.rank, is_new=not reached)

    def on_report(report: StepReport) -> None:
        saver.check()  # a training that cannot be saved is stopped now, not at the next save
        recent.append(report.loss)
        if reporter is not None:
            reporter.put({"step": report.step, "metrics": report.metrics(), "levels": report.levels})

    def on_samples(step: int, network: UViT, ema: Ema) -> None:
        # Sharded weights are gathered by all workers; the first draws, the others wait for it in the next step.
        raw, average = whole(dict(network.named_parameters()), keep=rank == 0), whole(ema.values, keep=rank == 0)
        if reporter is not None:
            if not samples:
                samples.append(TrainingSamples(config, encodings, tokens_of, device))
            reporter.put({"step": step, "samples": samples[0].png(raw, average)})

    def on_checkpoint(state: TrainState) -> None:
        nonlocal reached
        reached = state.step
        metric = sum(recent) / len(recent) if recent else None
        recent.clear()
        if share.replica == 0:  # other copies are the same
            saver.save(state, metric)
        elif backend.gathers:
            state.snapshot()

    def on_failure(failure: SaveFailure) -> None:
        mailbox.put.remote({"step": failure.step, "save_failed": explained(failure.error), "in_a_row": failure.in_a_row})

    def on_step(step: int, network: UViT, ema: Ema) -> None:
        if step in points.steps:
            points.measure(step, network, ema)

    share = backend.sharing(config.compute)
    attempt = broadcast_from_rank_zero(new_attempt())
    with Saver(keeper, on_failure, rank=share.rank, world=share.world, attempt=attempt) as saver:
        fit(
            config,
            loader,
            Provenance(**job["provenance"]),
            Hooks(on_report, on_checkpoint, on_samples, on_step, lambda step: Order.STOP if step == points.pause else orders()),
            start=start,
            backend=backend,
        )
        orders.close()
    return reached
