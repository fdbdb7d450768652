"""Stage `train`: selected pairs -> a checkpoint, by Ray Train workers (gloo on CPUs, NCCL on GPUs)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.callback import UserCallback

from semantica.data.dataset import Manifest, StageOutput
from semantica.data.durable import appearing, new_attempt, remove_abandoned, remove_folder
from semantica.data.schemas import HELD_OUT
from semantica.distributed.control import GroupEvents, Outcome, killing_stalled_workers, run_until_asked, start_control
from semantica.distributed.elastic import ElasticTrainer
from semantica.distributed.reports import HISTORY, Progress, keep_history, open_journal, remove_journal
from semantica.distributed.runtime import ClusterConfig, Runtime
from semantica.distributed.session import check_resources, run_token, say
from semantica.distributed.stage import StageSession, stage_session
from semantica.distributed.worker import Job, StepHook, Worker, train_on_worker
from semantica.distributed.xla import XlaConfig, tpu_scaling
from semantica.errors import ConfigError, DataError, Stopped
from semantica.evaluation.of_training import levels_svg
from semantica.pairs.loader import SelectedPairs
from semantica.tracking import Place, Run
from semantica.training.checkpoint import Checkpoint, Keeper, Provenance
from semantica.training.feed import batches_of
from semantica.training.recipe import TrainConfig
from semantica.training.start import CHECKPOINTS, MODEL, TrainingInputs, cooldown_note, make_resumable, steps_done
from semantica.training.watch import NonFiniteError

__all__ = ["CHECKPOINTS", "MODEL", "check_fits", "train"]


@dataclass(frozen=True)
class TrainingHook:
    """What the caller of a training adds to it, such as a sweep that measures its trials.

    title, params: of its run in MLflow. on_worker: makes what every worker does after steps. callbacks: Ray Train's.
    """

    title: str
    params: Mapping[str, Any]
    on_worker: Callable[[Worker], StepHook]
    callbacks: Sequence[UserCallback] = field(default=())


def train(
    config: TrainConfig,
    inputs: TrainingInputs,
    *,
    out: Path,
    runtime: Runtime,
    parent: Run | None = None,
    hook: TrainingHook | None = None,
) -> Manifest:
    """Train on the selected pairs of the inputs and put the checkpoint in `out`/model. Returns the stage's manifest.

    Raises Stopped when Ctrl-C or SIGTERM asked for it: called again, it goes on. A second signal raises KeyboardInterrupt.
    """
    pairs, initial = inputs.pairs, inputs.initial
    _check(config, pairs, runtime.cluster)
    folder, source = out.absolute(), pairs.manifest
    hashes = {"encodings": source.hash, "selection": pairs.selection.manifest.hash}
    if initial is not None:
        hashes[f"init_{config.init_weights}"] = initial.hash
    stage = StageOutput(folder, "checkpoint", config, hashes, at_least={"num_steps": steps_done(folder)})

    def ready(session: StageSession) -> None:
        session.start_ray()
        _check_room(runtime.cluster)
        if stage.is_begun():
            make_resumable(folder)

    if stage.finished() is None:  # before tracking sends what an earlier start left, and removes it
        keep_history(folder, Place.beside(folder, runtime.tracking, run_token(folder, make=False)).runs())
    with stage_session("train", stage, runtime, parent, title=hook.title if hook else "", ready=ready) as session:
        if session.done is not None:
            return session.done
        session.start_ray()
        session.notes += initial.notes(config, source.facts["encoder"]) if initial else []
        session.notes += [note] if (note := cooldown_note(folder, config)) else []
        for note in session.notes:  # now too: the end may be days away
            say(f"{'train':<9} {note}")
        if hook:
            session.run.params(hook.params)
        provenance = Provenance(
            encoder={"identity": source.facts["encoder"], "config": source.config["encoder"]},
            encodings=hashes["encodings"],
            selection=hashes["selection"],
            corpus_mean=tuple(source.facts["corpus_mean"]),
        )
        job = Job(
            config=config,
            inputs=inputs,
            provenance=provenance,
            checkpoints=folder / CHECKPOINTS,
            cluster=runtime.cluster,
            run=session.run,
            journal=open_journal(folder, session.run),
            control=start_control(),
            hook=hook.on_worker if hook else None,
        )
        outcome = _run(job, folder, hook.callbacks if hook else ())
        history = keep_history(folder, [job.journal])
        for step, figures in list(job.journal.read_figures("loss").items())[-1:]:
            if (curve := levels_svg(figures, step)) is not None:
                session.run.bytes(curve.encode(), "loss_by_logsnr.svg")
        _check_ended(outcome, job)
        if outcome.num_groups > 1:
            failed = f"{len(outcome.failures)} of them failed"
            session.notes.append(f"{outcome.num_groups} groups of workers, one after the other; {failed}")
        return _finish(session, job, folder, history)


def _check(config: TrainConfig, pairs: SelectedPairs, cluster: ClusterConfig) -> None:
    """Raise ConfigError for what could not be trained, before any worker starts."""
    check_fits(config, pairs.manifest, cluster)
    if config.sample_every is not None and not any(file.num_rows for file in pairs.manifest.shards(HELD_OUT)):
        raise ConfigError(
            "train.sample_every: the encodings hold no held-out pictures to draw samples for; "
            "ingest with held_out_share above 0, or leave it out"
        )
    pairs.stream(batches_of(config))


def check_fits(config: TrainConfig, encodings: Manifest, cluster: ClusterConfig) -> None:
    """Raise ConfigError when the denoiser does not fit the encoder, or the workers do not divide the lanes."""
    identity = encodings.facts["encoder"]
    for name in ("token_dim", "num_tokens", "pooled_dim"):
        if getattr(config.denoiser, name) != identity[name]:
            raise ConfigError(
                f"train.denoiser.{name} is {getattr(config.denoiser, name)}, but the encodings were made by {identity['name']} "
                f"at {identity['image_px']} px, which has {identity[name]}; choose a preset for this encoder or set the field"
            )
    if config.num_lanes % cluster.num_workers:
        raise ConfigError(f"cluster.num_workers must divide train.num_lanes = {config.num_lanes}, got {cluster.num_workers}")
    config.compute.check_workers(cluster.num_workers)


def _check_room(cluster: ClusterConfig) -> None:
    """Raise ConfigError when the Ray of this machine has no room for the fewest workers that may train."""
    fewest = replace(cluster, num_workers=cluster.min_workers or cluster.num_workers)
    check_resources(fewest, gpus=float(fewest.num_workers if fewest.use_gpu else 0))


def _run(job: Job, folder: Path, callbacks: Sequence[UserCallback]) -> Outcome:
    """Run the workers until the training is done or stopped."""
    _check_room(job.cluster)
    progress = Progress(job.control, job.journal, job.run, job.config.num_steps)
    with progress, killing_stalled_workers(job.control, job.cluster.stall_s):
        ended = run_until_asked(_trainer(job, folder, callbacks).fit, job.control)
    outcome: Outcome = ray.get(job.control.outcome.remote())
    if not ended and outcome.stopped_at is None:
        newest = Keeper(job.checkpoints, job.config.keep).newest()
        return replace(outcome, stopped_at=newest.step if newest else 0)
    return outcome


def _check_ended(outcome: Outcome, job: Job) -> None:
    """Raise NonFiniteError or Stopped when the training ended before its last step."""
    if outcome.reason:
        raise NonFiniteError(outcome.reason)
    if outcome.stopped_at is not None:
        raise Stopped(
            f"train: stopped as asked, saved at step {outcome.stopped_at} of {job.config.num_steps}; "
            "the same command goes on from there"
        )


def _trainer(job: Job, out: Path, callbacks: Sequence[UserCallback]) -> ray.train.torch.TorchTrainer:
    cluster, config = job.cluster, job.config
    resources = {"CPU": cluster.cpus_per_worker, **({"GPU": 1.0} if cluster.use_gpu else {})}
    elastic = cluster.min_workers is not None
    scaling = ScalingConfig(
        num_workers=(cluster.min_workers, cluster.num_workers) if elastic else cluster.num_workers,
        elastic_resize_monitor_interval_s=cluster.resize_every_s,
        use_gpu=cluster.use_gpu,
        resources_per_worker=resources,
    )
    torch_config = None
    if cluster.tpu_type is not None and cluster.tpu_topology is not None:
        scaling = tpu_scaling(cluster.num_workers, cluster.tpu_type, cluster.tpu_topology, cluster.cpus_per_worker)
        torch_config = XlaConfig()
    elif cluster.xla_cpu_devices is not None:
        torch_config = XlaConfig(platform="CPU", num_cpu_devices=cluster.xla_cpu_devices)
    trainer = (ElasticTrainer if elastic else ray.train.torch.TorchTrainer)(
        partial(train_on_worker, job),
        torch_config=torch_config,
        scaling_config=scaling,
        run_config=RunConfig(
            name="ray",
            storage_path=str(out),
            failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=cluster.max_failures),
            callbacks=[GroupEvents(job.control), *callbacks],
        ),
    )
    if isinstance(trainer, ElasticTrainer):
        trainer.num_lanes, trainer.control = config.num_lanes, job.control
        trainer.multiple_of = config.compute.shard_workers or 1
    return trainer


def _finish(session: StageSession, job: Job, folder: Path, history: Sequence[Mapping[str, Any]]) -> Manifest:
    """Put the last checkpoint, read back once, in its final place, and finish the output."""
    config, run = job.config, session.run
    latest = Keeper(job.checkpoints, config.keep).newest()
    if latest is None:
        raise DataError(f"train: {job.checkpoints} has no checkpoint; run semantica train again")
    _keep_model(latest, folder / MODEL, config)
    files = [f"{MODEL}/{path.name}" for path in sorted((folder / MODEL).iterdir())]
    loss = history[-1]["loss"] if history else float("nan")
    rate = sorted(entry["images_per_second"] for entry in history)[len(history) // 2] if history else 0.0
    session.summary = f"{config.num_steps} steps of {config.batch_size} pairs, loss {loss:.3f}, {rate:.0f} images/s"
    manifest = session.out.finish({"num_steps": config.num_steps}, {"loss": loss}, [*files, HISTORY])
    shutil.rmtree(folder / "ray", ignore_errors=True)  # Ray's own records
    remove_journal(folder)
    if not (config.keep.best or config.keep.every_steps):
        shutil.rmtree(job.checkpoints)  # all that was kept to resume from
    for path in (folder / MODEL / "config.json", *sorted((folder / MODEL).glob("ema*.safetensors"))):
        run.artifact(path, MODEL)
    return manifest


def _keep_model(checkpoint: Checkpoint, model: Path, config: TrainConfig) -> None:
    """Put the last checkpoint in its final place."""
    if checkpoint.step != config.num_steps:
        raise DataError(
            f"train: the last checkpoint is of step {checkpoint.step}, expected {config.num_steps}; run semantica train again"
        )
    remove_abandoned(model.parent, MODEL)  # of an earlier start that was killed here
    with appearing(model, new_attempt()) as copy:
        shutil.copytree(checkpoint.folder, copy, dirs_exist_ok=True)
        if model.exists():  # of fewer steps
            remove_folder(model)
