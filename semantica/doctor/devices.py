"""Devices: processors, memory, shared memory for Ray's object store, and a small operation on each GPU and TPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from semantica.doctor.finding import Finding, fail, ok, warn
from semantica.doctor.versions import installed_version

_GPU_DEVICES = ("/dev/nvidia0", "/proc/driver/nvidia/version")
_XLA = "import torch, torch_xla; print(float((torch.ones(2, 2, device=torch_xla.device()) @ torch.ones(2, 2).to('xla')).sum()))"


def check_devices() -> Iterator[Finding]:
    """One finding each for processors, shared memory, every GPU, and TPUs."""
    yield processors()
    yield shared_memory(Path("/dev/shm"), psutil.virtual_memory().total)
    yield from gpus(any(Path(path).exists() for path in _GPU_DEVICES))
    yield tpus(tpu_devices())


def processors() -> Finding:
    """The CPUs and the memory that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory()
    found = f"{usable} CPUs, {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB of memory free"
    if memory.available < 2e9:
        return warn("devices.cpu", found, "a worker takes 1 GB or more: end other programs, or lower --cluster.num-actors")
    return ok("devices.cpu", found)


def shared_memory(folder: Path, memory: int) -> Finding:
    """Whether the folder is as large as Ray's object store: 30% of the memory."""
    name = "devices.shm"
    if not folder.is_dir():
        return warn(
            name, f"no {folder}", "Ray's object store will be on the disk, which is slow: use Linux, or mount a tmpfs there"
        )
    total = shutil.disk_usage(folder).total
    found = f"{folder} of {total / 1e9:.1f} GB"
    if total < 0.3 * memory:
        remedy = f"Ray takes {0.3 * memory / 1e9:.1f} GB on this machine, and uses the disk without them: docker run --shm-size"
        return warn(name, found, remedy + ", or a smaller --cluster.object-store-mb")
    return ok(name, found)


def gpus(driver: bool) -> Iterator[Finding]:
    """One finding per GPU, after a matrix product on it. driver: whether the machine has an NVIDIA driver."""
    import torch

    name = "devices.cuda"
    if not torch.cuda.is_available():
        if not driver:
            yield ok(name, "none; everything runs on CPUs")
        elif torch.version.cuda is None:
            yield fail(name, f"there is a GPU, but torch {torch.__version__} has no CUDA", "install torch of constraints.txt")
        else:
            remedy = "a newer driver (CUDA 13 needs 580), docker run --gpus all, and no empty CUDA_VISIBLE_DEVICES"
            yield fail(name, f"there is a driver, but torch (CUDA {torch.version.cuda}) cannot use it", remedy)
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        ones = torch.ones(64, 64, device=f"cuda:{index}", dtype=torch.bfloat16)
        right = bool(((ones @ ones) == 64).all())
        free, total = torch.cuda.mem_get_info(index)
        found = (
            f"{properties.name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, bfloat16 product {'right' if right else 'WRONG'}"
        )
        if not right:
            yield fail(f"{name}:{index}", found, "the GPU computes wrong results: do not use it")
        elif free < 0.5 * total:
            yield warn(f"{name}:{index}", found, "another process is using it: nvidia-smi says which")
        else:
            yield ok(f"{name}:{index}", found)


def tpus(devices: list[str], *, seconds: float = 120.0) -> Finding:
    """Whether torch-xla computes on the TPU. Runs in a separate process, which releases the chips when it ends."""
    name = "devices.tpu"
    if not devices:
        return ok(name, "none")
    if installed_version("torch-xla") is None:
        return fail(name, f"{devices[0]}, but no torch-xla", "install as docs/reference/tpu.md says")
    environment = {**os.environ, "PJRT_DEVICE": "TPU"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _XLA], capture_output=True, text=True, timeout=seconds, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return fail(
            name,
            f"{devices[0]}, but no answer within {seconds:g} s",
            "another process may hold the chips; see docs/reference/tpu.md",
        )
    if done.returncode or done.stdout.split() != ["8.0"]:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        return fail(
            name,
            f"{devices[0]}, but torch-xla says: {last[0][:200]}",
            "see docs/reference/tpu.md; another process may hold the chips",
        )
    return ok(name, f"{devices[0]}, torch-xla computes on it")


def tpu_devices() -> list[str]:
    """The device files of TPU chips. Newer chips use VFIO, as other devices do: it counts only with libtpu."""
    candidates = ["/dev/accel0"] + (["/dev/vfio/0"] if installed_version("libtpu") else [])
    return [path for path in candidates if Path(path).exists()]
