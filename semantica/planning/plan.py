"""The plan of an experiment, for `semantica plan`: arithmetic, hours, storage, bandwidth and cost of every stage, in flow order.

In: the settings of every stage, the corpus and the machines (`machines.PlanConfig`), and optionally an ingested and scored sample
of the data. Out: a `Plan`, which is plain data. Its warnings say what does not fit and what to do, one sentence each: first what
stops a job at once, then what makes it wait, then what to know. Nothing is started, fetched or written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from semantica.data.dataset import Manifest
from semantica.denoiser.sizes import sampling_bytes
from semantica.planning.machines import PlanConfig
from semantica.planning.memory import TrainingMemory, smallest_change, training_memory
from semantica.planning.model import DenoiserCosts, VitShape, denoiser_costs, encoder_shape
from semantica.planning.pairs import MIN_PAGES, ExpectedPairs, PageCounts, expected_pairs
from semantica.planning.sizes import hours, size
from semantica.planning.storage import (
    CheckpointBytes,
    Corpus,
    DatasetBytes,
    checkpoint_bytes,
    dataset_bytes,
    estimate_corpus,
    extrapolate_corpus,
)
from semantica.presets import PipelineConfig

_HOUR, _MONTH_HOURS = 3600, 730
_PNG_BYTES_PER_PIXEL = 1.5  # of a sample, about
_INCEPTION_FLOPS = 11.4e9  # per picture of 299 px, sample or real, in evaluate
_REQUESTS_PER_FILE = 4  # to an object store: write, check that it exists, read twice


@dataclass(frozen=True)
class StagePlan:
    """One stage. unit_hours: hours of all devices or cores (`on`), waiting included, since they are paid for. limit: what decides
    the time. waits: the share of the time in which devices or cores are idle. reads_s: bytes per second of all machines together.
    """

    name: str
    on: str
    unit_hours: float | int
    hours: float | int
    limit: Literal["computing", "network", "driver"]
    waits: float | int
    stored: float | int
    reads: float | int
    reads_s: float | int
    cost: float | int


@dataclass(frozen=True)
class Way:
    """Training with stored tokens, or with tokens encoded on the fly: bytes of all datasets, bytes read per second, hours."""

    stored: float | int
    reads_s: float | int
    images_s: float | int
    hours: float | int


@dataclass(frozen=True)
class Plan:
    """The plan of an experiment; `warnings` say what does not fit and what to do."""

    config: PlanConfig
    corpus: Corpus
    denoiser: DenoiserCosts
    encoder: VitShape
    encoder_flops: float | int
    memory: TrainingMemory
    data: DatasetBytes
    checkpoints: CheckpointBytes
    stages: tuple[StagePlan, ...]
    precomputed: Way
    on_the_fly: Way
    storage_cost: float | int
    request_cost: float | int
    epochs: float | int
    pairs: ExpectedPairs | None
    warnings: tuple[str, ...] = ()

    @property
    def cost(self) -> float:
        """The cost of all stages, storage and requests."""
        return sum(stage.cost for stage in self.stages) + self.storage_cost + self.request_cost

    @property
    def hours(self) -> float:
        """The hours of all stages, one after the other."""
        return sum(stage.hours for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for --json."""
        plain = asdict(self) | {"cost": self.cost, "hours": self.hours}
        plain["memory"] |= {"total": self.memory.total}
        plain["checkpoints"] |= {"total": self.checkpoints.total}
        plain["corpus"] |= {"num_images": self.corpus.num_images}
        return plain


def make_plan(
    settings: PipelineConfig, config: PlanConfig, episodes: Manifest | None = None, sample: PageCounts | None = None
) -> Plan:
    """The plan. episodes: a finished ingest of a sample; sample: its scored pages. Raises ConfigError when they do not match."""
    corpus = _corpus(settings, config, episodes, sample)
    train, encode = settings.train, settings.encode
    shape = encoder_shape(encode.encoder)
    encoder_flops = shape.flops(encode.encoder.image_px)
    costs = denoiser_costs(train.denoiser, train.compute)
    # By page, a page is on one side. By image, it may have pictures on both.
    sides = corpus.train.num_pages, corpus.held_out.num_pages
    num_pages = round(sum(sides) if settings.ingest.split_by == "page" else max(sides))
    num_shards = -(-num_pages // settings.ingest.read.pages_per_part)

    def data_of(store_tokens: bool) -> DatasetBytes:
        chosen = replace(encode, store_tokens=store_tokens)
        return dataset_bytes(corpus, chosen, max(1, num_shards), rows_per_group=settings.ingest.rows_per_group)

    data = data_of(encode.store_tokens)
    pairs = None if sample is None else expected_pairs(sample, corpus.train.num_images)
    targets = pairs.targets.number if pairs else corpus.train.num_images
    seen = train.num_steps * train.batch_size
    checkpoints = checkpoint_bytes(train)

    def flops_of(store_tokens: bool) -> float:
        return costs.step_flops + (0.0 if store_tokens else encoder_flops * train.denoiser.max_images)

    def way(store_tokens: bool) -> Way:
        rate = config.flops_s / flops_of(store_tokens)
        if config.train_images_s is not None:  # measured with the tokens as they are configured
            rate = config.num_devices * config.train_images_s * flops_of(encode.store_tokens) / flops_of(store_tokens)
        datasets = data_of(store_tokens)
        # Row groups are read whole, once per epoch, and an epoch draws every target once.
        share = corpus.train.num_images / corpus.num_images
        return Way(datasets.total, rate * datasets.encodings * share / max(1.0, targets), rate, seen / rate / _HOUR)

    ways = {stored: way(stored) for stored in (True, False)}
    chosen = ways[encode.store_tokens]
    stages = (
        *_data_stages(corpus, data, encoder_flops, config),
        _training(chosen, checkpoints, config),
        *_drawing(settings, costs, config),
    )
    months = config.prices.keep_months + sum(stage.hours for stage in stages) / _MONTH_HOURS
    files = data.num_shards * 3 * 3
    plan = Plan(
        config=config,
        corpus=corpus,
        denoiser=costs,
        encoder=shape,
        encoder_flops=encoder_flops,
        memory=training_memory(train, config.num_devices),
        data=data,
        checkpoints=checkpoints,
        stages=stages,
        precomputed=ways[True],
        on_the_fly=ways[False],
        storage_cost=sum(stage.stored for stage in stages) / 1e9 * months * config.prices.gb_month,
        request_cost=files * _REQUESTS_PER_FILE / 1e6 * config.prices.request_million,
        epochs=seen / max(1.0, targets),
        pairs=pairs,
    )
    return replace(plan, warnings=tuple(what_does_not_fit(settings, plan)))


def _corpus(settings: PipelineConfig, config: PlanConfig, episodes: Manifest | None, sample: PageCounts | None) -> Corpus:
    pairs_per_page = None if sample is None else float(sample.scored.mean())
    if episodes is not None:
        return extrapolate_corpus(config.num_images, episodes, settings.ingest, pairs_per_page)
    corpus = estimate_corpus(config.num_images, config.images_per_page, settings.ingest)
    return corpus if pairs_per_page is None else replace(corpus, pairs_per_page=pairs_per_page)


def _data_stages(corpus: Corpus, data: DatasetBytes, encoder_flops: float | int, config: PlanConfig) -> list[StagePlan]:
    num = corpus.num_images
    rate = config.num_devices * config.encode_pictures_s if config.encode_pictures_s else config.flops_s / encoder_flops
    score_hours = corpus.train.num_pages / config.score_pages_s / _HOUR
    records, shards = data.scores + data.selection + data.bookkeeping, data.num_shards
    original, computing = num * config.original_kb * 1e3, num / config.ingest_pictures_s / _HOUR
    return [
        # Ingest reads all parts twice, for the census and for the pictures.
        _stage("ingest", "core", computing, config, data.episodes, 2 * original, 2 * shards),
        _stage("encode", "device", num / rate / _HOUR * config.num_devices, config, data.encodings, data.episodes, shards),
        _stage("pairs", "core", score_hours, config, records, num * data.pooled_bytes, shards),
    ]


def _training(chosen: Way, checkpoints: CheckpointBytes, config: PlanConfig) -> StagePlan:
    reads = chosen.reads_s * chosen.hours * _HOUR
    stage = _stage("train", "device", chosen.hours * config.num_devices, config, checkpoints.total, reads)
    return replace(stage, cost=stage.cost + reads / 1e9 * config.prices.egress_gb)


def _drawing(settings: PipelineConfig, costs: DenoiserCosts, config: PlanConfig) -> list[StagePlan]:
    generate = settings.generate
    num = generate.num_conditions * generate.samples_per_condition
    flops = sum(num * costs.drawing_flops(generate.sampler.num_steps, 1 + (w != 0)) for w in generate.guidance)
    pictures = num * len(generate.guidance)
    png = settings.train.denoiser.resolution_px**2 * _PNG_BYTES_PER_PIXEL
    measured = (pictures + generate.num_conditions) * _INCEPTION_FLOPS
    per_hour = config.tflops * 1e12 * config.utilisation * _HOUR
    return [
        _stage("generate", "device", flops / per_hour, config, pictures * png, 0.0),
        _stage("evaluate", "device", measured / per_hour, config, pictures * 2048 * 4, pictures * png),
    ]


def _stage(
    name: str,
    on: str,
    working: float | int,
    config: PlanConfig,
    stored: float | int,
    reads: float | int,
    num_shards: float | int = 0,
) -> StagePlan:
    of_devices = on == "device"
    units = config.num_devices if of_devices else config.num_cpus
    price = config.prices.device_hour if of_devices else config.prices.cpu_hour
    takes: dict[Literal["computing", "network", "driver"], float] = {
        "computing": working / units,
        "network": reads / config.network_bytes_s / _HOUR,
        "driver": num_shards * config.driver_ms / 1000 / _HOUR,
    }
    limit = max(takes, key=lambda name: takes[name])
    hours = takes[limit]
    waits, cost = 1 - takes["computing"] / hours, hours * units * price
    return StagePlan(name, on, hours * units, hours, limit, waits, stored, reads, reads / (hours * _HOUR), cost)


_MANY_EPOCHS = 100
_SMALL_GROUPS = 1_000_000  # row groups of a selection, which every worker reads as a list when it starts
_WAITS, _LONG_HOURS = 0.05, 0.5  # warn when a stage of more than 0.5 h waits for more than 5% of its time
_SAVE_SHARE = 0.5  # warn when a save takes a larger share of the time between two saves


def what_does_not_fit(settings: PipelineConfig, plan: Plan) -> Iterator[str]:
    """The warnings, the most serious first."""
    yield from _shapes(settings, plan)
    yield from _device(settings, plan)
    yield from _bandwidth(settings, plan)
    yield from _disk(plan)
    yield from _knowledge(settings, plan)


def _shapes(settings: PipelineConfig, plan: Plan) -> Iterator[str]:
    train, encoder = settings.train, settings.encode.encoder
    gives = (plan.encoder.num_tokens(encoder.image_px), plan.encoder.width, plan.encoder.width)
    takes = (train.denoiser.num_tokens, train.denoiser.token_dim, train.denoiser.pooled_dim)
    if gives != takes:
        yield (
            f"the denoiser takes {takes[0]} tokens of width {takes[1]} and a pooled embedding of width {takes[2]}, but "
            f"{encoder.weights} gives {gives[0]} of {gives[1]} and {gives[2]}: set --train.denoiser.num-tokens {gives[0]} "
            f"--train.denoiser.token-dim {gives[1]} --train.denoiser.pooled-dim {gives[2]}"
        )
    workers = plan.config.num_workers
    if train.num_lanes % workers:
        lanes = f"set --train.num-lanes {workers}, or " if train.batch_size % workers == 0 else ""
        fewer = max(n for n in range(1, workers) if train.num_lanes % n == 0)
        yield (
            f"{workers} workers do not divide train.num_lanes = {train.num_lanes}: {lanes}use {fewer} workers (on TPUs one worker "
            "has all chips of its host: set --devices-per-worker)"
        )
    if train.batch_size < plan.config.num_devices:
        yield f"{plan.config.num_devices} devices for a batch of {train.batch_size}: some stay idle; use fewer devices"


def _device(settings: PipelineConfig, plan: Plan) -> Iterator[str]:
    config, memory = plan.config, plan.memory
    room = config.device_gb * 1e9
    if not memory.fits(room):
        change = smallest_change(settings.train, config.num_devices, room)
        remedy = (
            f"with {change.flags} it is {size(change.memory.total)}"
            if change
            else "no micro-batch, recomputation or sharding makes it fit: use more devices with --train.compute.parallel fsdp, "
            "larger devices, or a smaller denoiser"
        )
        yield f"training needs {size(memory.total)} of a device that has {size(room)} (a tenth stays free for libraries): {remedy}"
    dtype = torch.bfloat16 if settings.generate.speed.precision == "bfloat16" else torch.float32
    row = sampling_bytes(settings.train.denoiser, dtype)
    weights = plan.denoiser.num_parameters * dtype.itemsize
    if weights + row > room:
        yield (
            f"no picture can be drawn: weights and one row take {size(weights + row)}, a device has {size(room)}; "
            "use larger devices"
        )
    copied, shared = memory.state.weights * 4, settings.train.compute.parallel == "ddp"  # with DDP the first worker alone saves
    host = config.host_gb * 1e9 / (1 if shared else config.devices_per_host)
    if copied > host:
        yield (
            f"a save copies {size(copied)} per worker to a host that has {size(host)}{'' if shared else ' per device'}: use "
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
            remedy = f"the network ({size(network)}/s): fewer {stage.on}s take the same time"
            if stage.limit == "driver":
                remedy = f"its driver, which hands out {plan.data.num_shards:,} shards: raise --ingest.read.pages-per-part"
            yield f"{stage.name} waits {stage.waits:.0%} of {hours(stage.hours)} for {remedy}"
    needed = chosen.images_s / plan.config.num_workers / config.loader_pictures_s
    if needed > 1:
        yield (
            f"a training worker needs {chosen.images_s / config.num_workers:,.0f} pictures per second, a core decodes "
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
        f"all stages store {size(needed)}, the disk has {size(room)}: {tokens}the episodes ({size(plan.data.episodes)}) may be "
        f"deleted when the encodings are complete; {plan.checkpoints.num_kept} checkpoints of {size(plan.checkpoints.each)} are "
        "kept (--train.keep.every-steps)"
    )


def _knowledge(settings: PipelineConfig, plan: Plan) -> Iterator[str]:
    train = settings.train
    if train.compute.precision == "float32" and plan.config.tflops > 100:
        yield (
            f"train.compute.precision is float32, but devices reach {plan.config.tflops:g} TFLOP/s in bfloat16 only: set "
            "--train.compute.precision bfloat16, or --tflops for float32"
        )
    if plan.pairs and plan.pairs.num_pages < MIN_PAGES:
        yield f"the sample has {plan.pairs.num_pages} pages, too few for a standard error: score {MIN_PAGES} pages or more"
    if plan.epochs > _MANY_EPOCHS:
        yield f"every target is drawn {plan.epochs:,.0f} times, so the model may learn it by heart: use more pages or fewer steps"
    if plan.data.num_row_groups > _SMALL_GROUPS:
        yield (
            f"the selection lists {plan.data.num_row_groups:,} row groups ({size(plan.data.selection)} of JSON), and every worker "
            "reads it when it starts: set --encode.no-store-tokens or a larger --encode.rows-per-group to have fewer"
        )
