"""Samples of the machine beside a run's figures, by MLflow's own names (system/cpu_utilization_percentage, ...).

MLflow's SystemMetricsMonitor asks the server before every sample and ends when it does not answer, so only the monitors that it
reads are taken: processors, memory, disk, network, and NVIDIA GPUs where nvidia-ml-py is installed. The node is the driver's.
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
    """A block in which `record(figures, step)` is called every so many seconds; steps count them from the run's first start on."""
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

    found: list[Any] = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        try:
            found.append(kind())
        except Exception as error:  # noqa: BLE001 - no GPU, no driver, no library
            log.debug("tracking: no %s (%s)", kind.__name__, error)
    return found
