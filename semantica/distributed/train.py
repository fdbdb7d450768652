"""Stage `train`: encodings + selection -> a checkpoint, by Ray Train workers (gloo on CPUs, NCCL on GPUs)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.callback import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from semantica.config import to_dict
from semantica.data.dataset import Manifest, StageOutput, read_manifest
from semantica.data.location import Location, location, uri
from semantica.data.schemas import HELD_OUT
from semantica.distributed.session import check_resources, say
from semantica.distributed.stage import StageSession, stage_session
from semantica.distributed.training_control import Control
from semantica.distributed.training_elastic import ElasticTrainer
from semantica.distributed.training_figures import Trial
from semantica.distributed.training_guard import Groups, Guard, run_until_asked
from semantica.distributed.training_history import HISTORY, JOURNAL, complete_history
from semantica.distributed.training_reports import Follower, Mailbox
from semantica.distributed.training_worker import train_on_worker
from semantica.distributed.xla import XlaConfig, tpu_scaling
from semantica.encoders.on_the_fly import tokens_on_the_fly
from semantica.errors import ConfigError, DataError, Stopped
from semantica.pairs.loader import LoaderWorker
from semantica.runtime import ClusterConfig, Runtime
from semantica.tracking import Run
from semantica.training.checkpoint import Checkpoint, Keeper, Provenance
from semantica.training.loader import training_loader
from semantica.training.recipe import TrainConfig
from semantica.training.start import CHECKPOINTS, MODEL, cooldown_note, initial_weights, make_resumable, steps_done
from semantica.training.watch import NonFiniteError

__all__ = ["CHECKPOINTS", "MODEL", "check_fits", "train"]


def train(
    config: TrainConfig,
    *,
    encodings: str | Path | Location,
    selection: str | Path | Location,
    out: Path,
    runtime: Runtime,
    parent: Run | None = None,
    trial: Trial | None = None,
) -> Manifest:
    """Train on the pairs of `selection` and put the checkpoint in `out`/model. Returns the stage's manifest.

    trial: of which sweep this training is a part, and what is measured on the way.

    Raises Stopped when Ctrl-C or SIGTERM asked for it: called again, it goes on. A second signal raises KeyboardInterrupt.
    """
    encodings, selection = location(encodings), location(selection)
    source, chosen = read_manifest(encodings, "encodings"), read_manifest(selection, "selection")
    check_fits(config, source, runtime.cluster)
    if config.sample_every is not None and not any(file.num_rows for file in source.shards(HELD_OUT)):
        raise ConfigError(
            "train.sample_every: the encodings hold no held-out pictures to draw samples for; "
            "ingest with held_out_share above 0, or leave it out"
        )
    # Refused here, before any worker starts: the loader checks selection against encodings and the lanes.
    open_bytes = runtime.cluster.loader_mb * 2**20
    tokens_of = tokens_on_the_fly(source)
    worker = LoaderWorker(world=runtime.cluster.num_workers, max_open_bytes=open_bytes)
    training_loader(config, encodings, selection, worker, tokens_of=tokens_of)
    folder = out.absolute()
    inputs = {"encodings": source.hash, "selection": chosen.hash}
    initial = initial_weights(config)
    if initial is not None:
        initial.check_fit(config.denoiser)
        inputs[f"init_{config.init_weights}"] = initial.hash
    stage = StageOutput(folder, "checkpoint", config, inputs, at_least={"num_steps": steps_done(folder)})
    fewest = replace(runtime.cluster, num_workers=runtime.cluster.min_workers or runtime.cluster.num_workers)

    def ready(session: StageSession) -> None:
        session.start_ray()
        check_resources(fewest, gpus=float(fewest.num_workers if fewest.use_gpu else 0))
        if stage.is_begun():
            make_resumable(folder)

    with stage_session("train", stage, runtime, parent, title=trial.name if trial else "", ready=ready) as session:
        if session.done is not None:
            return session.done
        session.start_ray()
        session.notes += initial.notes(config, source.facts["encoder"]) if initial else []
        session.notes += [note] if (note := cooldown_note(folder, config)) else []
        for note in session.notes:  # now too: the end may be days away
            say(f"{'train':<9} {note}")
        if trial:
            session.run.params(trial.settings)
        provenance = Provenance(
            encoder={"identity": source.facts["encoder"], "config": source.config["encoder"]},
            encodings=source.hash,
            selection=chosen.hash,
            corpus_mean=tuple(source.facts["corpus_mean"]),
        )
        job = {
            "config": to_dict(config),
            "encodings": uri(encodings),
            "selection": uri(selection),
            "provenance": asdict(provenance),
            "checkpoints": str(folder / CHECKPOINTS),
            "journal": str(folder / JOURNAL),
            "loader_mb": runtime.cluster.loader_mb,
            "loader_threads": runtime.cluster.loader_threads,
            "stall_s": runtime.cluster.stall_s,
            "use_xla": runtime.cluster.use_xla,
            "mailbox": _beside_the_driver(Mailbox),
            "control": _beside_the_driver(Control),
            "run": session.run,
            "trial": trial.watch if trial else None,
        }
        check_resources(fewest, gpus=float(fewest.num_workers if fewest.use_gpu else 0))
        complete_history(folder)  # with what the driver before, if it was killed, did not come to write
        with Follower(job["mailbox"], session.run, config), Guard(job["control"], runtime.cluster.stall_s):
            callbacks = trial.callbacks if trial else ()
            ended = run_until_asked(_trainer(job, config, runtime.cluster, folder, callbacks).fit, job["control"])
        history = complete_history(folder)
        if reason := ray.get(job["mailbox"].why_stopped.remote()):
            raise NonFiniteError(reason)
        stopped, num_groups, failures = ray.get(job["control"].outcome.remote())
        if stopped is not None or not ended:
            raise Stopped(_stopped(stopped, config, folder))
        if num_groups > 1:
            session.notes.append(f"{num_groups} groups of workers, one after the other; {len(failures)} of them failed")
        latest = Keeper(folder / CHECKPOINTS, config.keep).newest()
        if latest is None:
            raise DataError(f"train: {folder / CHECKPOINTS} has no checkpoint; run jobs.train again")
        _keep_model(latest, folder / MODEL, config)
        files = [f"{MODEL}/{p.name}" for p in sorted((folder / MODEL).iterdir())]
        loss = history[-1]["loss"] if history else float("nan")
        rate = sorted(h["images_per_second"] for h in history)[len(history) // 2] if history else 0.0
        session.summary = f"{config.num_steps} steps of {config.batch_size} pairs, loss {loss:.3f}, {rate:.0f} images/s"
        manifest = stage.finish({"num_steps": config.num_steps}, {"loss": loss}, [*files, HISTORY])
        shutil.rmtree(folder / "ray", ignore_errors=True)  # Ray's own records
        (folder / JOURNAL).unlink(missing_ok=True)
        if not (config.keep.best or config.keep.every_steps):
            shutil.rmtree(folder / CHECKPOINTS)  # all that was kept to go on from
        for path in (folder / MODEL / "config.json", *sorted((folder / MODEL).glob("ema*.safetensors"))):
            session.run.artifact(path, MODEL)
        return manifest


def check_fits(config: TrainConfig, encodings: Manifest, cluster: ClusterConfig) -> None:
    """Raise ConfigError or DataError when the denoiser does not fit the encoder, or the workers do not divide the lanes."""
    identity = encodings.facts["encoder"]
    for field, got in (("token_dim", "token_dim"), ("num_tokens", "num_tokens"), ("pooled_dim", "pooled_dim")):
        if getattr(config.denoiser, field) != identity[got]:
            raise DataError(
                f"train.denoiser.{field} is {getattr(config.denoiser, field)}, but the encodings were made by {identity['name']} "
                f"at {identity['image_px']} px, which has {identity[got]}; choose a preset for this encoder or set the field"
            )
    if config.num_lanes % cluster.num_workers:
        raise ConfigError(f"cluster.num_workers must divide train.num_lanes = {config.num_lanes}, got {cluster.num_workers}")
    config.compute.check_workers(cluster.num_workers)


def _beside_the_driver(cls: type) -> Any:
    """An actor of the class on the driver's machine, as the controller of the training is: other machines may go."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(cls).remote()


def _stopped(step: int | None, config: TrainConfig, folder: Path) -> str:
    if step is None:
        newest = Keeper(folder / CHECKPOINTS, config.keep).newest()
        step = newest.step if newest else 0
    return f"train: stopped as asked, saved at step {step} of {config.num_steps}; the same command goes on from there"


def _trainer(
    job: dict[str, Any], config: TrainConfig, cluster: ClusterConfig, out: Path, callbacks: Sequence[UserCallback]
) -> ray.train.torch.TorchTrainer:
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
        train_on_worker,
        train_loop_config=job,
        torch_config=torch_config,
        scaling_config=scaling,
        run_config=RunConfig(
            name="ray",
            storage_path=str(out),
            failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=cluster.max_failures),
            callbacks=[Groups(job["control"]), *callbacks],
        ),
    )
    if isinstance(trainer, ElasticTrainer):
        trainer.num_lanes, trainer.control = config.num_lanes, job["control"]
        trainer.multiple_of = config.compute.shard_workers or 1
    return trainer


def _keep_model(checkpoint: Checkpoint, model: Path, config: TrainConfig) -> None:
    """Put the last checkpoint in its final place."""
    if checkpoint.step != config.num_steps:
        raise DataError(
            f"train: the last checkpoint is of step {checkpoint.step}, expected {config.num_steps}; run jobs.train again"
        )
    partial = model.with_name(".model.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(checkpoint.folder, partial)
    if model.exists():
        shutil.rmtree(model)
    partial.rename(model)
