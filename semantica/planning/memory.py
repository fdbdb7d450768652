"""The memory of a training device, computed from shapes alone.

In: the recipe and the number of workers. Out: bytes of the state, of the prefetched batches, and of the activations of one pass.
For the activations, the real step runs on tensors that have shapes but no data, and every tensor is counted while it lives. Not
counted: memory of the device's libraries (a CUDA context, NCCL's buffers, convolution workspaces) and losses of the allocator
between tensors. A compiled network needs less than is counted here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from semantica.denoiser.configs import DenoiserConfig
from semantica.denoiser.sizes import PeakBytes, example_conditioning
from semantica.denoiser.uvit import UViT
from semantica.diffusion.settings import ScheduleConfig
from semantica.pairs.loader import Batch
from semantica.planning.model import shape_only
from semantica.training.compute import prepare
from semantica.training.parallel import StateBytes, state_bytes
from semantica.training.recipe import ComputeConfig, Recompute, TrainConfig
from semantica.training.step import StepNoise, add_gradients

_FLOAT = 4
_ROOM = 0.92  # share of a device's memory that a plan may fill; context, workspaces and the allocator's losses need the rest [C]


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on the device of a training worker. batches: the current batch and the prefetched ones. rows: examples per pass
    through the network. working: activations, temporary tensors, and gradients that are not in the state.
    """

    state: StateBytes
    batches: int
    working: int
    rows: int

    @property
    def total(self) -> int:
        """Bytes of state, batches and working memory."""
        return self.state.total + self.batches + self.working

    def fits(self, device_bytes: float | int) -> bool:
        """Whether a device with `device_bytes` has enough memory, with room for what is not counted."""
        return self.total <= _ROOM * device_bytes


def training_memory(train: TrainConfig, world: int) -> TrainingMemory:
    """The memory of each of `world` workers; of the largest, where some have one slot more than others."""
    slots = -(-train.batch_size // world)
    parts = math.ceil(slots / (train.micro_batch_size or slots))
    rows = -(-slots // parts)
    state = state_bytes(train.denoiser, train.compute, world)
    # With one micro-batch, gradients appear while activations are freed. From the second micro-batch on, gradients exist
    # throughout. Sharded gradients are freed block by block.
    together = parts == 1 and not (train.compute.is_sharded and world > 1)
    working = _pass_bytes(train.denoiser, shape_only(train.compute), rows, together)
    if together:
        working -= state.weights  # the size of the gradients, which the state already counts
    return TrainingMemory(state, (1 + train.prefetch) * slots * example_bytes(train.denoiser), working, rows)


def example_bytes(denoiser: DenoiserConfig) -> int:
    """Bytes of one example of a batch on the device: picture, noise and the values of every signal, float32."""
    with torch.device("meta"):
        signals = example_conditioning(denoiser, 1).signals.values()
    numbers = sum(tensor.numel() for signal in signals for tensor in signal.tensors.values())
    return _FLOAT * (2 * math.prod(denoiser.shape) + numbers)


@lru_cache
def _pass_bytes(denoiser: DenoiserConfig, compute: ComputeConfig, rows: int, with_gradients: bool) -> int:
    """The peak bytes of the tensors of one forward and backward pass, without inputs and weights."""
    with FakeTensorMode():
        network = prepare(UViT(denoiser).train(), compute)
        if not with_gradients:
            for parameter in network.parameters():
                parameter.register_post_accumulate_grad_hook(_free_gradient)  # type: ignore[no-untyped-call]
        schedule = ScheduleConfig(resolution_px=denoiser.resolution_px)
        recipe = TrainConfig(denoiser=denoiser, schedule=schedule, batch_size=rows, num_lanes=1, compute=compute)
        batch, noise = _batch(denoiser, rows)
        with PeakBytes() as counter:
            add_gradients(network, batch, noise, 0, recipe)
    return int(counter.peak)


def _free_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _batch(denoiser: DenoiserConfig, rows: int) -> tuple[Batch, StepNoise]:
    cond = example_conditioning(denoiser, rows)
    x, never = torch.empty(rows, *denoiser.shape), torch.zeros(rows, dtype=torch.bool)
    return Batch(x, cond, range(rows)), StepNoise(torch.empty(rows), torch.empty_like(x), dict.fromkeys(cond.signals, never))


@dataclass(frozen=True)
class Change:
    """Settings with which a training fits, as flags of semantica train, and the memory that a worker then needs."""

    flags: str
    memory: TrainingMemory


def smallest_change(train: TrainConfig, world: int, device_bytes: float | int) -> Change | None:
    """The mildest change with which a worker's memory fits into `device_bytes`; None when none of these changes is enough.

    The order: fewer rows at once, which costs no FLOPs; recomputed blocks; sharded weights.
    """
    slots = -(-train.batch_size // world)
    kinds: list[tuple[str, Recompute]] = [(train.compute.parallel, r) for r in _at_least(train.compute.recompute)]
    if world > 1 and not train.compute.is_sharded:
        kinds += [("fsdp", r) for r in _at_least(train.compute.recompute)]
    for parallel, recompute in kinds:
        compute = replace(train.compute, recompute=recompute)
        if parallel != compute.parallel:
            compute = replace(compute, parallel="fsdp", shard_workers=None)
        for rows in _halves(min(slots, train.micro_batch_size or slots)):
            if _at_most(train, compute, world, rows) <= _ROOM * device_bytes:
                micro = None if rows == slots else rows
                memory = training_memory(replace(train, compute=compute, micro_batch_size=micro), world)
                return Change(_flags(train, compute, micro), memory)
    return None


def _at_most(train: TrainConfig, compute: ComputeConfig, world: int, rows: int) -> int:
    """An upper bound on the bytes of a worker with `rows` at once: each further row adds what the second row adds."""
    one, two = (_pass_bytes(train.denoiser, shape_only(compute), number, False) for number in (1, 2))
    batches = (1 + train.prefetch) * -(-train.batch_size // world) * example_bytes(train.denoiser)
    return state_bytes(train.denoiser, compute, world).total + batches + one + (rows - 1) * (two - one)


def _at_least(recompute: Recompute) -> tuple[Recompute, ...]:
    """This level of recomputation and the stronger ones."""
    order: tuple[Recompute, ...] = ("none", "transformer", "all")
    return order[order.index(recompute) :]


def _halves(rows: int) -> list[int]:
    return [rows, *(_halves(rows // 2) if rows > 1 else [])]


def _flags(train: TrainConfig, compute: ComputeConfig, micro: int | None) -> str:
    changed = {
        "micro-batch-size": (train.micro_batch_size, micro),
        "compute.recompute": (train.compute.recompute, compute.recompute),
        "compute.parallel": (train.compute.parallel, compute.parallel),
    }
    return " ".join(f"--train.{name} {new}" for name, (old, new) in changed.items() if new != old)
