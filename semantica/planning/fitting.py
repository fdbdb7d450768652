"""What of a plan does not fit, each as one sentence that says what to do.

In: the settings of an experiment and its plan. Out: sentences, none when all fits. What stops a job at once comes first, then what
makes it wait, then what to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from semantica.denoiser.sizes import sampling_bytes
from semantica.planning.memory import smaller
from semantica.planning.pairs import MIN_PAGES
from semantica.planning.sizes import hours, size
from semantica.presets import PipelineConfig

if TYPE_CHECKING:
    from semantica.planning.plan import Plan

_MANY_EPOCHS = 100
_SMALL_GROUPS = 1_000_000  # row groups of a selection, which every worker reads as a list when it starts
_WAITS, _LONG_HOURS = 0.05, 0.5  # of a stage's time; shorter stages are not worth a word
_SAVE_SHARE = 0.5  # of the time between two saves that one may take


def what_does_not_fit(settings: PipelineConfig, plan: Plan) -> Iterator[str]:
    """The sentences, in order of weight."""
    yield from _shapes(settings, plan)
    yield from _device(settings, plan)
    yield from _bandwidth(settings, plan)
    yield from _disk(plan)
    yield from _knowledge(settings, plan)


def _shapes(settings: PipelineConfig, plan: Plan) -> Iterator[str]:
    train, encoder = settings.train, settings.encode.encoder
    made = (plan.encoder.num_tokens(encoder.image_px), plan.encoder.width, plan.encoder.width)
    taken = (train.denoiser.num_tokens, train.denoiser.token_dim, train.denoiser.pooled_dim)
    if made != taken:
        yield (
            f"the denoiser takes {taken[0]} tokens of {taken[1]} numbers and {taken[2]} pooled ones, {encoder.weights} makes "
            f"{made[0]} of {made[1]} and {made[2]}: set --train.denoiser.num-tokens {made[0]} --train.denoiser.token-dim {made[1]} "
            f"--train.denoiser.pooled-dim {made[2]}"
        )
    workers = plan.config.num_workers
    if train.num_lanes % workers:
        lanes = f"set --train.num-lanes {workers}, or " if train.batch_size % workers == 0 else ""
        fewer = max(n for n in range(1, workers) if train.num_lanes % n == 0)
        yield (
            f"{workers} workers do not divide train.num_lanes = {train.num_lanes}: {lanes}use {fewer} workers (a TPU worker "
            "has all chips of its host: --devices-per-worker)"
        )
    if train.batch_size < plan.config.num_devices:
        yield f"{plan.config.num_devices} devices for a batch of {train.batch_size}: some have nothing to do; use fewer"


def _device(settings: PipelineConfig, plan: Plan) -> Iterator[str]:
    config, memory = plan.config, plan.memory
    room = config.device_gb * 1e9
    if not memory.fits(room):
        change = smaller(settings.train, config.num_devices, room)
        remedy = (
            f"with {change.flags} it is {size(change.memory.total)}"
            if change
            else "no micro-batch, recomputation or sharding makes it fit: use more devices with --train.compute.parallel fsdp, "
            "larger ones, or a smaller denoiser"
        )
        yield f"training needs {size(memory.total)} of a device that has {size(room)} (a tenth stays free for libraries): {remedy}"
    dtype = torch.bfloat16 if settings.generate.speed.precision == "bfloat16" else torch.float32
    row = sampling_bytes(settings.train.denoiser, dtype)
    weights = plan.denoiser.num_parameters * dtype.itemsize
    if weights + row > room:
        yield f"no picture can be drawn: weights and a row take {size(weights + row)}, a device has {size(room)}; use larger ones"
    copied, shared = memory.state.weights * 4, settings.train.compute.parallel == "ddp"  # with DDP the first worker alone saves
    host = config.host_gb * 1e9 / (1 if shared else config.devices_per_host)
    if copied > host:
        yield (
            f"a save copies {size(copied)} a worker to a host that has {size(host)}{'' if shared else ' a device'}: use "
            "--train.compute.parallel fsdp, or hosts with more memory"
        )


def _bandwidth(settings: PipelineConfig, plan: Plan) -> Iterator[str]:
    config = plan.config
    chosen = plan.precomputed if settings.encode.store_tokens else plan.on_the_fly
    network = config.network_bytes_s
    if chosen.reads_s > network:
        other = plan.on_the_fly
        remedy = (
            f"with --encode.no-store-tokens it reads {size(other.reads_s)}/s, for {other.hours / chosen.hours - 1:.0%} more time"
            if settings.encode.store_tokens and other.reads_s <= network
            else "use more hosts or a faster network, or copy the encodings to local disks"
        )
        yield f"training reads {size(chosen.reads_s)}/s, the hosts' network brings {size(network)}/s: {remedy}"
    for stage in plan.stages:
        if stage.waits > _WAITS and stage.hours > _LONG_HOURS and stage.name != "train":
            remedy = f"the network ({size(network)}/s): fewer {stage.on}s do as well"
            if stage.limit == "driver":
                remedy = f"its driver, which hands out {plan.data.num_shards:,} shards: raise --ingest.read.pages-per-part"
            yield f"{stage.name} waits {stage.waits:.0%} of {hours(stage.hours)} for {remedy}"
    needed = chosen.images_s / plan.config.num_workers / config.loader_pictures_s
    if needed > 1:
        yield (
            f"a training worker decodes {chosen.images_s / config.num_workers:,.0f} pictures a second, a core "
            f"{config.loader_pictures_s:,.0f}: set --cluster.loader-threads {int(needed) + 1} and as many --cluster.cpus-per-worker"
        )
    every = settings.train.checkpoint_every * settings.train.batch_size / chosen.images_s
    copies = plan.checkpoints.each / network
    if copies > _SAVE_SHARE * every:
        yield f"a checkpoint every {hours(every / 3600)} takes {hours(copies / 3600)} to write: raise --train.checkpoint-every"


def _disk(plan: Plan) -> Iterator[str]:
    if plan.config.disk_tb is None:
        return
    room, needed = plan.config.disk_tb * 1e12, sum(stage.stored for stage in plan.stages)
    if needed <= room:
        return
    saved = plan.precomputed.stored - plan.on_the_fly.stored
    tokens = f"--encode.no-store-tokens saves {size(saved)}; " if plan.data.token_bytes else ""
    yield (
        f"all stages store {size(needed)}, the disk has {size(room)}: {tokens}episodes ({size(plan.data.episodes)}) may go when "
        f"the encodings are whole; {plan.checkpoints.num_kept} checkpoints of {size(plan.checkpoints.each)} are kept "
        "(--train.keep.every-steps)"
    )


def _knowledge(settings: PipelineConfig, plan: Plan) -> Iterator[str]:
    train = settings.train
    if train.compute.precision == "float32" and plan.config.tflops > 100:
        yield (
            f"train.compute.precision is float32, and {plan.config.tflops:g} TFLOP/s is what devices reach in bfloat16: set "
            "--train.compute.precision bfloat16, or --tflops"
        )
    if plan.pairs and plan.pairs.num_pages < MIN_PAGES:
        yield f"pairs are expected from {plan.pairs.num_pages} pages, too few for the error that is told: score {MIN_PAGES} or more"
    if plan.epochs > _MANY_EPOCHS:
        yield f"every target is drawn {plan.epochs:,.0f} times: more pages or fewer steps, or the model learns them by heart"
    if plan.data.num_row_groups > _SMALL_GROUPS:
        yield (
            f"the selection lists {plan.data.num_row_groups:,} row groups ({size(plan.data.selection)} of JSON), which every "
            "worker reads when it starts: without stored tokens, and with larger --encode.rows-per-group, there are fewer"
        )
