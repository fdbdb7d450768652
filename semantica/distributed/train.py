"""Stage `train`: encodings + selection -> a checkpoint, by Ray Train workers (DDP; gloo on CPUs, NCCL on GPUs)."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from semantica.config import from_dict, to_dict
from semantica.datasets import Manifest, StageOutput, read_manifest
from semantica.distributed.session import check_resources, stage_session
from semantica.encoders.on_the_fly import tokens_on_the_fly
from semantica.errors import ConfigError, DataError
from semantica.pairs.loader import PairLoader
from semantica.progress import Meter
from semantica.runtime import ClusterConfig, Runtime
from semantica.storage import Location, location, uri, write_atomically
from semantica.tracking import Run
from semantica.training.checkpoint import Provenance, open_checkpoint
from semantica.training.loop import Hooks, fit
from semantica.training.recipe import TrainConfig
from semantica.training.watch import StepReport

MODEL = "model"
_HISTORY = "history.json"


class Mailbox:
    """Reports on their way from the first worker to the driver; the worker never waits for it."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []

    def put(self, item: dict[str, Any]) -> None:
        self.items.append(item)

    def take(self) -> list[dict[str, Any]]:
        taken, self.items = self.items, []
        return taken


def train_on_worker(job: dict[str, Any]) -> None:
    """What each worker runs: the loader of its share, the latest checkpoint, the loop. `job` is plain data and the mailbox."""
    config = from_dict(TrainConfig, job["config"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    encodings = location(job["encodings"])
    loader = PairLoader(
        encodings,
        location(job["selection"]),
        seed=config.seed,
        batch_size=config.batch_size,
        num_lanes=config.num_lanes,
        window_groups=config.window_groups,
        resolution_px=config.denoiser.resolution_px,
        max_images=config.denoiser.max_images,
        rank=rank,
        world=world,
        max_open_bytes=job["loader_mb"] * 2**20,
        tokens_of=tokens_on_the_fly(read_manifest(encodings, "encodings"), str(device)),
    )

    def on_report(report: StepReport) -> None:
        loss = torch.tensor(report.loss, device=device)  # NCCL takes no CPU tensors
        if world > 1:
            torch.distributed.all_reduce(loss)
        if rank == 0:
            job["mailbox"].put.remote({**asdict(report), "loss": float(loss) / world})

    def on_checkpoint(step: int, save: Callable[[Path], None]) -> None:
        if rank != 0:
            ray.train.report({"step": step})
            return
        folder = Path(tempfile.mkdtemp())
        save(folder)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": step}, checkpoint=checkpoint, delete_local_checkpoint_after_upload=True)

    latest = ray.train.get_checkpoint()
    with latest.as_directory() if latest else nullcontext() as folder:
        fit(
            config,
            loader,
            Provenance(**job["provenance"]),
            Hooks(on_report, on_checkpoint),
            start=open_checkpoint(Path(folder)) if folder else None,
            wrap=lambda network: ray.train.torch.prepare_model(network, parallel_strategy="ddp" if world > 1 else None),
            device=device,
        )


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
            "use_gpu": runtime.cluster.use_gpu,
            "loader_mb": runtime.cluster.loader_mb,
            "mailbox": ray.remote(num_cpus=0)(Mailbox).remote(),
        }
        check_resources(runtime.cluster, gpus=float(runtime.cluster.num_workers if runtime.cluster.use_gpu else 0))
        with _Follower(job["mailbox"], session.run, config, folder):
            result = _trainer(job, config, runtime.cluster, folder).fit()
        _keep_model(Path(result.checkpoint.path), folder / MODEL, config)
        files = [f"{MODEL}/{p.name}" for p in sorted((folder / MODEL).iterdir())]
        history = json.loads((folder / _HISTORY).read_text())
        loss = history[-1]["loss"] if history else float("nan")
        rate = sorted(h["images_per_second"] for h in history)[len(history) // 2] if history else 0.0
        session.summary = f"{config.num_steps} steps of {config.batch_size} pairs, loss {loss:.3f}, {rate:.0f} images/s"
        manifest = stage.finish({"num_steps": config.num_steps}, {"loss": loss}, [*files, _HISTORY])
        shutil.rmtree(folder / "ray")  # what Ray kept to resume from
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
    return ray.train.torch.TorchTrainer(
        train_on_worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(num_workers=cluster.num_workers, use_gpu=cluster.use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            # The same name and folder find the last checkpoint after a killed driver; `StageOutput` made sure it is the same run.
            name="ray",
            storage_path=str(out),
            checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints),
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


class _Follower:
    """Takes reports out of the mailbox while the trainer runs: into the progress bar, MLflow and `history.json`."""

    def __init__(self, mailbox: Any, run: Run, config: TrainConfig, folder: Path) -> None:
        self.mailbox, self.run, self.folder = mailbox, run, folder
        self.meter = Meter("train", config.num_steps, "steps")
        path = folder / _HISTORY
        self.history: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self.meter.__enter__()
        self.thread.start()

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        self.thread.join()
        self._take()
        self.meter.__exit__(*exc)

    def _follow(self) -> None:
        while not self.stop.wait(1.0):
            self._take()

    def _take(self) -> None:
        reports = ray.get(self.mailbox.take.remote())
        for report in reports:
            step = report["step"]
            # A restarted group repeats the steps since the last checkpoint: the later report of a step stands.
            self.history = [h for h in self.history if h["step"] < step] + [report]
            self.run.metrics({k: v for k, v in report.items() if k != "step"}, step=step)
            self.meter.advance(step - self.meter.done, f"loss {report['loss']:.3f}")
        if reports:
            write_atomically(self.folder / _HISTORY, json.dumps(self.history).encode())
