"""How well training uses its device: the FLOPs a second that the device can do, and the memory that is in use."""

from __future__ import annotations

import psutil
import torch

from semantica.training.recipe import TrainConfig

_SIDE, _ROUNDS, _CALLS = 8192, 3, 8  # of the square products: 70 ms of an H100 in bfloat16


def peak_flops(config: TrainConfig, device: torch.device | str) -> float | None:
    """FLOPs a second of one device, that MFU is a share of: the configured ones, or those of the fastest of some matrix products.

    Products in the precision of training, so a share of what this device reaches, not of its data sheet [C]. None on a CPU, unless
    configured.
    """
    device = torch.device(device)
    if config.peak_tflops is not None:
        return config.peak_tflops * 1e12
    if device.type != "cuda":
        return None
    dtype = torch.bfloat16 if config.compute.precision == "bfloat16" else torch.float32
    a = torch.ones(_SIDE, _SIDE, device=device, dtype=dtype)
    out = a @ a
    fastest = float("inf")
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(_CALLS):
            torch.mm(a, a, out=out)
        end.record()
        end.synchronize()
        fastest = min(fastest, start.elapsed_time(end) / 1000 / _CALLS)
    return 2 * _SIDE**3 / fastest


def memory_bytes(device: torch.device | str) -> int:
    """The most that tensors ever took on a CUDA device; elsewhere the resident memory of this process."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
