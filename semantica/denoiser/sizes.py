"""What a DenoiserConfig costs: parameters, FLOPs and bytes, counted on tensors without data."""

from __future__ import annotations

import weakref
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from semantica.conditioning.signals import SIMILARITY
from semantica.conditioning.values import Conditioning, SignalValues
from semantica.denoiser.configs import DenoiserConfig
from semantica.denoiser.uvit import UViT


def num_parameters(config: DenoiserConfig) -> int:
    """The number of learned parameters."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UViT(config).parameters())


def training_flops(config: DenoiserConfig) -> int:
    """FLOPs of forward and backward for one training image; 1 multiply-accumulate = 2 FLOPs.

    Counts matrix products, convolutions and attention (torch's FlopCounterMode); recomputation, the encoder and the optimizer
    are not in it.
    """
    with torch.device("meta"):
        network = UViT(config)
        z, cond = torch.empty(1, *config.shape), example_conditioning(config, 1)
        with FlopCounterMode(display=False) as counter:
            network(z, torch.empty(1), cond).sum().backward()
    return int(counter.get_total_flops())


def example_conditioning(config: DenoiserConfig, rows: int) -> Conditioning:
    """Every signal that the network takes, for `rows` pictures: all present, uninitialised. For counting FLOPs and bytes."""
    images = (rows, config.max_images)
    tokens, pooled = torch.empty(*images, config.num_tokens, config.token_dim), torch.empty(*images, config.pooled_dim)
    cond = Conditioning.of(tokens, pooled)
    if config.similarity:
        cond = cond.told(SIMILARITY, SignalValues({SIMILARITY: torch.empty(rows)}, torch.ones(rows, dtype=torch.bool)))
    for signal in config.signals:
        cond = cond.told(signal.name, SignalValues.of(signal, torch.empty(rows, *signal.shape(config.resolution_px))))
    return cond


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, counts the bytes of all new tensors that are alive at once; `peak` is the most there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._known.update(_storages((args, kwargs)))  # weights and what else was there before, of which outputs may be views
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage not in self._known:
                self._known.add(storage)
                weakref.finalize(storage, self._free, storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return out

    def _free(self, num_bytes: int) -> None:
        self.now -= num_bytes


def _storages(tree: object) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@lru_cache
def sampling_bytes(config: DenoiserConfig, dtype: torch.dtype) -> int:
    """Bytes that one row of the network's forward pass needs at once without gradients: activations, and the keys and values of
    its conditioning. Weights are not in it.
    """
    rows = 2
    with FakeTensorMode(), torch.no_grad():
        network = UViT(config).eval()  # in float32: a fake module cannot be cast
        z, logsnr, cond = torch.empty(rows, *config.shape), torch.empty(rows), example_conditioning(config, rows)
        with PeakBytes() as counter:
            prepared = network.prepare(cond)
            network(z, logsnr, prepared)
    return int(counter.peak) // rows * dtype.itemsize // torch.float32.itemsize
