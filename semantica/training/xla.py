"""Training on XLA devices (TPUs) by torch-xla: one process per host drives all its chips, and every step is one graph.

In: network, EMA, settings and the host's share of a batch, as `fit` has them for any device. Out: the same, laid out over the mesh
of all chips of all hosts. Batches are split by slots; weights are whole on every chip or split by rows. XLA adds the sums over the
chips to the graph (SPMD), so nothing here averages gradients. torch_xla is imported when a mesh is created, and not before.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.library import Library

from semantica.conditioning.values import Conditioning
from semantica.denoiser.uvit import UViT
from semantica.errors import ConfigError
from semantica.pairs.loader import Batch
from semantica.training.ema import Ema
from semantica.training.parallel import Sharing
from semantica.training.recipe import ComputeConfig, EmaConfig, OptimizerConfig, TrainConfig
from semantica.training.step import StepNoise

_AXIS = "chips"
_SPLIT_FROM = 2**16  # smaller weights stay whole: gathering them costs more than the memory that splitting saves [C]


class TracedAdam(torch.optim.Adam):
    """Adam in operations that XLA traces, equal to the fused kernel up to rounding. It runs on any device.

    Learning rate, count and `found_inf` are tensors, so their values are no part of the graph. When `found_inf` is 1, weights,
    moments and count do not change. The state exists from the start, so the first step has the same graph as all others.
    """

    found_inf: Tensor

    def __init__(self, network: nn.Module, settings: OptimizerConfig) -> None:
        betas = (settings.beta1, settings.beta2)
        super().__init__(network.parameters(), lr=settings.learning_rate, betas=betas, eps=settings.eps, foreach=False)
        for p in network.parameters():
            self.state[p] = {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Apply the gradients."""
        assert closure is None
        skipped = self.found_inf > 0
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            weights = [p for p in group["params"] if p.grad is not None]
            counts = [self.state[p]["step"] for p in weights]
            # All weights have a gradient at every step, so their counts are equal.
            count = counts[0] + 1
            rate = _upload(group["lr"], count.device) / _correction(beta1, count)
            scale = _correction(beta2, count).sqrt()
            for p in weights:
                mean, square = self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"]
                assert p.grad is not None
                new_mean = mean + (p.grad - mean) * (1 - beta1)
                new_square = square * beta2 + p.grad * p.grad * (1 - beta2)
                new = p - rate * new_mean / (new_square.sqrt() / scale + group["eps"])
                # `where`, not a product with the mask: 0 · NaN is NaN.
                for old, updated in ((p, new), (mean, new_mean), (square, new_square)):
                    old.copy_(torch.where(skipped, old, updated))
            for own_count in counts:
                own_count += 1 - self.found_inf


def _upload(value: float, device: torch.device) -> Float[Tensor, ""]:
    """The number as separate data on the device.

    Equal numbers and equal tensors without dimensions become one parameter of an XLA graph. So a decay that happens to equal
    another number of the graph, as 1 - beta1 = 0.1, would change the graph.
    """
    return torch.tensor([value], dtype=torch.float32).to(device)[0]


def _correction(beta: float, count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """1 - beta^count, without the loss of digits that float32 has at the first steps, where beta^count is near 1."""
    return -torch.expm1(count * (math.log(beta) if beta else -math.inf))


class Seeded(nn.Module):
    """The network, with dropout drawn by XLA's generator from the last seed of torch's generator."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, logsnr: Tensor, cond: Conditioning) -> Tensor:
        import torch_xla

        torch_xla.manual_seed(torch.initial_seed())  # the seed is a parameter of the graph, so a new seed compiles nothing
        v_hat: Tensor = self.network(z, logsnr, cond)
        return v_hat


class TracedEma(Ema):
    """`Ema` with its decay as a tensor."""

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights by 1 - decay."""
        weight = _upload(1.0 - self.settings.at(self.num_updates), next(iter(self.values.values())).device)
        for name, value in self.values.items():
            value.lerp_(self._live[name].detach().float(), weight)
        self.num_updates += 1


@cache
def _lower_what_is_missing() -> Library:
    """Replace the denoiser's operations that torch-xla 2.9 would run on the host, amid a step, by ones that it traces."""
    library = Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once", UserWarning)  # about the override
        library.impl("exp2", lambda x: torch.pow(torch.full_like(x, 2.0), x), "XLA")  # type: ignore[no-untyped-call]
        # On CPUs, torch-xla's own runs on the host.
        library.impl("upsample_nearest2d_backward", _sum_copies, "XLA", allow_override=True)  # type: ignore[no-untyped-call]
    return library  # the operations are registered for as long as this object exists


def _sum_copies(
    gradient: Tensor,
    output_size: Sequence[int],
    input_size: Sequence[int],
    scale_h: float | None = None,
    scale_w: float | None = None,
) -> Tensor:
    """The gradient of nearest-neighbour upsampling by whole factors: the sum over the copies of each pixel."""
    batch, channels, height, width = input_size
    copies = gradient.reshape(batch, channels, height, output_size[0] // height, width, output_size[1] // width)
    return copies.sum((3, 5))


@dataclass(frozen=True)
class CompileStats:
    """How many graphs XLA has compiled in this process so far, and in how many seconds."""

    num_graphs: int
    seconds: float


class XlaMesh:
    """The backend of XLA devices: all chips of all hosts as one device. `fit(..., backend=mesh)` trains on it.

    split_weights: every large weight, its average and its moments are split by rows over the chips (FSDP, by SPMD annotations).
    The result equals that of whole weights up to the order of sums. The first mesh of a process turns SPMD on, and must do so
    before any XLA tensor exists.
    """

    def __init__(self, *, split_weights: bool = False) -> None:
        import torch_xla
        import torch_xla.distributed.spmd as xs
        import torch_xla.runtime as xr

        if not xr.is_spmd():
            xr.use_spmd()
        _lower_what_is_missing()
        self.split_weights = split_weights
        self.device: torch.device = torch_xla.device()
        self.num_chips: int = xr.global_runtime_device_count()
        self.num_hosts: int = xr.process_count()
        # Decides which slots this host feeds. Ray's rank is another number, and may change when a group is restarted.
        self.loader_rank: int = xr.process_index()
        # Samples and on-the-fly tokens are computed on the host's CPUs: XLA would compile their graphs too.
        self.aside = torch.device("cpu")
        self._mesh = xs.Mesh(np.arange(self.num_chips), (self.num_chips,), (_AXIS,))

    @property
    def gathers(self) -> bool:
        """Whether split weights must be gathered from the chips of all hosts."""
        return self.split_weights

    def sharing(self, compute: ComputeConfig) -> Sharing:
        """Every host has all of the state, since XLA splits it over chips and not over workers. The first worker writes."""
        return Sharing(0, 1, dist.get_rank() if dist.is_initialized() else 0)

    def prepare(self, config: TrainConfig) -> None:
        """Set the precision of products as the recipe says. Raises ConfigError for a recipe that this mesh cannot run."""
        parts = self.num_chips * math.ceil(config.batch_size / (config.micro_batch_size or config.batch_size))
        if config.batch_size % parts:
            raise ConfigError(
                f"train.batch_size must be a multiple of {parts} ({self.num_chips} chips times the number of micro-batches, each "
                f"for all chips together), got {config.batch_size}; change it or train.micro_batch_size"
            )
        if config.compute.compile:
            raise ConfigError("train.compute.compile must be false on XLA, which compiles every step as a whole, got true")
        if config.compute.recompute != "none":
            raise ConfigError(
                f"train.compute.recompute must be none on XLA, whose compiler removes the recomputation, got "
                f"{config.compute.recompute}; use smaller micro-batches"
            )
        if config.compute.parallel == "hsdp":
            raise ConfigError("train.compute.parallel must be ddp or fsdp on XLA, got hsdp")
        if self.split_weights and self.num_hosts > 1 and config.sample_every is not None:
            raise ConfigError(
                "train.sample_every must be None with train.compute.parallel fsdp on several XLA hosts: no host has all weights"
            )
        import torch_xla.backends as backends

        # By default TPUs round the factors of float32 products to bfloat16.
        precision = "highest" if config.compute.precision == "float32" else "default"
        if backends.get_mat_mul_precision() != precision:
            backends.set_mat_mul_precision(precision)

    def optimizer(self, network: nn.Module, settings: OptimizerConfig) -> TracedAdam:
        """The optimizer of `make_optimizer`, for XLA."""
        return TracedAdam(network, settings)

    def average(self, network: nn.Module, settings: EmaConfig) -> TracedEma:
        """The average of the weights, for XLA."""
        return TracedEma(network, settings)

    def wrap(self, network: UViT, compute: ComputeConfig) -> nn.Module:
        """The network, with dropout from XLA's generator."""
        return Seeded(network)

    def lay_out(self, network: UViT, ema: Ema, optimizer: torch.optim.Optimizer) -> None:
        """Place every tensor of the training on the mesh."""
        import torch_xla
        import torch_xla.distributed.spmd as xs

        tensors = [*network.parameters(), *ema.values.values()]
        tensors += [tensor for state in optimizer.state.values() for tensor in state.values()]
        torch_xla.sync()  # tensors that are not computed yet have no place
        for tensor in tensors:
            # Whole tensors are marked too: without a mark the next step would compile another graph.
            rows = _AXIS if self._is_split(tensor) else None
            xs.mark_sharding(tensor, self._mesh, (rows, *[None] * (tensor.ndim - 1)) if tensor.ndim else ())

    def _is_split(self, tensor: Tensor) -> bool:
        return self.split_weights and tensor.ndim > 0 and tensor.numel() >= _SPLIT_FROM and len(tensor) % self.num_chips == 0

    def place(self, batch: Batch, noise: StepNoise) -> tuple[Batch, StepNoise]:
        """The batch of all hosts and its noise, on the chips; this host gives its own slots. Any thread may call this.

        The rows are in the order of the chips, not of the slots; no later step needs the slot of a row.
        """
        cond, moved = batch.cond.map(self._split), noise.map(self._split)
        # The slots must be the same on every host: they seed dropout, and all hosts must draw the same masks.
        return Batch(self._split(batch.x), cond, range(len(batch.slots) * self.num_hosts)), moved

    def _split(self, tensor: Tensor) -> Tensor:
        import torch_xla.core.xla_model as xm
        import torch_xla.distributed.spmd as xs

        spec = xs.ShardingSpec(self._mesh, (_AXIS, *[None] * (tensor.ndim - 1)), minibatch=True)
        return cast("Tensor", xm.send_cpu_data_to_device([tensor.contiguous()], self.device, spec)[0])

    def step(self) -> AbstractContextManager[object]:
        """The context of one step: one graph, which starts to run at the end of the context.

        Raises RuntimeError when the host would wait within the step. It cannot see the backward pass, which torch runs on another
        thread: a wait there shows in `compile_stats`.
        """
        import torch_xla

        return cast("AbstractContextManager[object]", torch_xla.compile(full_graph=True))

    def total(self, figures: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The figures of `StepSums.report` as if every chip were a worker; the last seven are counts and times of a worker.

        The batch is already that of all hosts. MFU is a share of the peak of all chips.
        """
        on_host = figures.cpu()
        scale = torch.ones_like(on_host)
        scale[-7:] = self.num_chips
        scale[-3] = 1  # images
        return on_host * scale


def compile_stats() -> CompileStats:
    """What XLA has compiled so far. The count grows when the graph of a step changes from call to call."""
    import torch_xla.debug.metrics as metrics

    total = (metrics.metric_data("CompileTime") or [0, 0.0])[1]  # nanoseconds
    return CompileStats(metrics.counter_value("UncachedCompile") or 0, total / 1e9)
