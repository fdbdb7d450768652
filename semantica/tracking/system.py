"""Samples of the driver's machine, recorded beside a run's figures under MLflow's names (system/cpu_utilization_percentage, ...).

MLflow's SystemMetricsMonitor asks the server before every sample and ends when the server does not answer. So only its single
monitors are used: processors, memory, disk, network, and NVIDIA GPUs where nvidia-ml-py is installed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


@contextmanager
def sample_system(record: Callable[[Mapping[str, float | int], int], None], every_s: float, started_ms: int) -> Iterator[None]:
    """A block in which `record(figures, step)` is called every `every_s` seconds. Steps count from the run's first start."""
    if not every_s:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_sample, args=(record, every_s, started_ms, stop), name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _sample(
    record: Callable[[Mapping[str, float | int], int], None], every_s: float, started_ms: int, stop: threading.Event
) -> None:
    monitors = _monitors()
    while not stop.wait(every_s):
        figures: dict[str, float | int] = {}
        for monitor in monitors:
            try:
                monitor.collect_metrics()
                figures |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            except Exception as error:  # noqa: BLE001 - drivers and containers fail in ways of their own; no figure is worth a run
                log.debug("tracking: %s gives nothing (%s)", type(monitor).__name__, error)
        record(figures, int((time.time() - started_ms / 1000) / every_s))


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        try:
            monitors.append(kind())
        except Exception as error:  # noqa: BLE001 - no GPU, no driver, no library
            log.debug("tracking: no %s (%s)", kind.__name__, error)
    return monitors
