"""Stage `train`: encodings + selection -> a checkpoint, by Ray Train workers (DDP; gloo on CPUs, NCCL on GPUs)."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig

from semantica.config import to_dict
from semantica.datasets import Manifest, StageOutput, read_manifest
from semantica.distributed.session import check_resources, stage_session
from semantica.distributed.training_reports import HISTORY, Follower, Mailbox
from semantica.distributed.training_worker import train_on_worker
from semantica.distributed.xla import XlaConfig, tpu_scaling
from semantica.encoders.on_the_fly import tokens_on_the_fly
from semantica.errors import ConfigError, DataError
from semantica.generation.conditions import HELD_OUT
from semantica.pairs.loader import PairLoader
from semantica.runtime import ClusterConfig, Runtime
from semantica.storage import Location, location, uri
from semantica.tracking import Run
from semantica.training.checkpoint import Provenance, open_checkpoint
from semantica.training.keeper import Keeper
from semantica.training.recipe import TrainConfig
from semantica.training.watch import NonFiniteError

MODEL, CHECKPOINTS = "model", "checkpoints"


def train(
    config: TrainConfig,
    *,
    encodings: str | Path | Location,
    selection: str | Path | Location,
    out: Path,
    runtime: Runtime,
    parent: Run | None = None,
) -> Manifest:
    """Train on the pairs of `selection` and put the checkpoint in `out`/model. Returns the stage's manifest."""
    encodings, selection = location(encodings), location(selection)
    source, chosen = read_manifest(encodings, "encodings"), read_manifest(selection, "selection")
    check_fits(config, source, runtime.cluster)
    if config.sample_every is not None and not any(file.num_rows for file in source.shards(HELD_OUT)):
        raise ConfigError(
            "train.sample_every: the encodings hold no held-out pictures to draw samples for; "
            "ingest with held_out_share above 0, or leave it out"
        )
    # Refused here, before any worker starts: the loader checks selection against encodings and the lanes.
    PairLoader(
        encodings,
        selection,
        seed=config.seed,
        batch_size=config.batch_size,
        num_lanes=config.num_lanes,
        window_groups=config.window_groups,
        resolution_px=config.denoiser.resolution_px,
        max_images=config.denoiser.max_images,
        world=runtime.cluster.num_workers,
        max_open_bytes=runtime.cluster.loader_mb * 2**20,
        tokens_of=tokens_on_the_fly(source),
    )
    folder = out.absolute()
    stage = StageOutput(folder, "checkpoint", to_dict(config), {"encodings": source.hash, "selection": chosen.hash})
    with stage_session("train", stage, runtime, parent) as session:
        if session.done is not None:
            return session.done
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
            "loader_mb": runtime.cluster.loader_mb,
            "use_xla": runtime.cluster.use_xla,
            "split_weights": runtime.cluster.xla_split_weights,
            "mailbox": ray.remote(num_cpus=0)(Mailbox).remote(),
        }
        check_resources(runtime.cluster, gpus=float(runtime.cluster.num_workers if runtime.cluster.use_gpu else 0))
        with Follower(job["mailbox"], session.run, config, folder):
            _trainer(job, config, runtime.cluster, folder).fit()
        if reason := ray.get(job["mailbox"].why_stopped.remote()):
            raise NonFiniteError(reason)
        latest = Keeper(folder / CHECKPOINTS, config.keep).newest()
        if latest is None:
            raise DataError(f"train: {folder / CHECKPOINTS} has no checkpoint; run jobs.train again")
        _keep_model(latest.folder, folder / MODEL, config)
        files = [f"{MODEL}/{p.name}" for p in sorted((folder / MODEL).iterdir())]
        history = json.loads((folder / HISTORY).read_text())
        loss = history[-1]["loss"] if history else float("nan")
        rate = sorted(h["images_per_second"] for h in history)[len(history) // 2] if history else 0.0
        session.summary = f"{config.num_steps} steps of {config.batch_size} pairs, loss {loss:.3f}, {rate:.0f} images/s"
        manifest = stage.finish({"num_steps": config.num_steps}, {"loss": loss}, [*files, HISTORY])
        shutil.rmtree(folder / "ray", ignore_errors=True)  # Ray's own records
        if not (config.keep.best or config.keep.every_steps):
            shutil.rmtree(folder / CHECKPOINTS)  # all that was kept to go on from
        for name in ("config.json", "ema.safetensors"):
            session.run.artifact(folder / MODEL / name, MODEL)
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


def _trainer(job: dict[str, Any], config: TrainConfig, cluster: ClusterConfig, out: Path) -> ray.train.torch.TorchTrainer:
    resources = {"CPU": cluster.cpus_per_worker, **({"GPU": 1.0} if cluster.use_gpu else {})}
    scaling = ScalingConfig(num_workers=cluster.num_workers, use_gpu=cluster.use_gpu, resources_per_worker=resources)
    torch_config = None
    if cluster.tpu_type is not None and cluster.tpu_topology is not None:
        scaling = tpu_scaling(cluster.num_workers, cluster.tpu_type, cluster.tpu_topology, cluster.cpus_per_worker)
        torch_config = XlaConfig()
    elif cluster.xla_cpu_devices is not None:
        torch_config = XlaConfig(platform="CPU", num_cpu_devices=cluster.xla_cpu_devices)
    return ray.train.torch.TorchTrainer(
        train_on_worker,
        train_loop_config=job,
        torch_config=torch_config,
        scaling_config=scaling,
        run_config=RunConfig(
            name="ray",
            storage_path=str(out),
            failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=cluster.max_failures),
        ),
    )


def _keep_model(latest: Path, model: Path, config: TrainConfig) -> None:
    """Put the last checkpoint, checked, in its final place."""
    checkpoint = open_checkpoint(latest)
    if checkpoint.step != config.num_steps:
        raise DataError(
            f"train: the last checkpoint is of step {checkpoint.step}, expected {config.num_steps}; run jobs.train again"
        )
    partial = model.with_name(".model.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(latest, partial)
    if model.exists():
        shutil.rmtree(model)
    partial.rename(model)
