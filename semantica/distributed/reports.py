"""How the figures of a training come from its first worker to a person: into a journal on disk at once, and from there to
MLflow, to the progress bar and to `history.json`.

The journal is the spool of the training's run, which tracking keeps until MLflow has all of it; without MLflow it is a folder of
the same format in the output. A report is on disk before the checkpoint after it, whatever is killed.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from semantica.data.durable import write_atomically
from semantica.distributed.progress import Meter
from semantica.tracking import Run
from semantica.tracking.spool import records, size

HISTORY, JOURNAL = "history.json", ".journal"
_COUNTS = ("num_skipped", "memory_bytes")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What the first worker says after a step: figures by their names in MLflow, a picture of samples, or a warning."""

    step: int
    figures: Mapping[str, float] = field(default_factory=dict)
    png: bytes | None = None
    warning: str = ""


class Recorder:
    """Puts figures into the journal and pictures into the run.

    Figures that the journal has from before a restart are left out: those whose first one has the same value at the same step.
    """

    def __init__(self, journal: Run, run: Run) -> None:
        self.journal, self.run = journal, run
        self._known: dict[str, dict[int, float]] = {}  # by the name of the first figure and by step, of earlier starts too

    def put(self, report: Report) -> None:
        """Record a report. Waits for nothing but the disk."""
        if report.png is not None:
            self.run.image(report.png, f"samples-{report.step:07d}")
        for name in list(report.figures)[:1]:
            if name not in self._known:
                self._known[name] = {step: figures[name] for step, figures in self.journal.read_figures(name).items()}
            if not _same(self._known[name].get(report.step), report.figures[name]):
                self.journal.metrics(report.figures, step=report.step)
                self._known[name][report.step] = report.figures[name]


def _same(one: float | None, other: float) -> bool:
    return one == other or (one is not None and math.isnan(one) and math.isnan(other))


def reporting(journal: Run, run: Run, control: Any) -> Callable[[Report], None]:
    """How a worker reports: into the journal, or through the driver where this machine does not see the journal's disk."""
    if not Path(journal.folder).is_dir():
        return lambda report: control.report.remote(report)
    return Recorder(journal, run).put


class Progress:
    """Shows what the journal gets while the block runs, and records what workers could not record themselves."""

    def __init__(self, control: Any, journal: Run, run: Run, num_steps: int) -> None:
        self.control, self.journal = control, Path(journal.folder)
        self.recorder = Recorder(journal, run)
        self.meter = Meter("train", num_steps, "steps")
        self._shown = size(self.journal)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> None:
        self.meter.__enter__()
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()
        self._show()
        self.meter.__exit__(*exc)

    def _follow(self) -> None:
        while not self._end.wait(1.0):
            self._show()

    def _show(self) -> None:
        for report in ray.get(self.control.take_reports.remote()):
            self.recorder.put(report)
            if report.warning:
                _log.error("%s", report.warning)
        for record, end in records(self.journal, self._shown):
            self._shown = end
            figures = record.get("values", {})
            if record.get("kind") == "metrics" and "loss" in figures:
                skipped = f", {figures['num_skipped']:.0f} steps skipped" if figures["num_skipped"] else ""
                self.meter.advance(record["step"] - self.meter.done, f"loss {figures['loss']:.3f}{skipped}")


def open_journal(output: Path, run: Run) -> Run:
    """The journal of a training that writes to `output`: its run's, or, where there is none, one in the output."""
    if run.folder:
        return run
    (output / JOURNAL).mkdir(exist_ok=True)
    journal = Run(str(output / JOURNAL))
    journal.close()  # of an output that this process had before in the same place
    return journal


def remove_journal(output: Path) -> None:
    """Remove the journal in a finished output. That of a run, tracking removes."""
    shutil.rmtree(output / JOURNAL, ignore_errors=True)


def keep_history(output: Path, journals: Sequence[Run]) -> list[dict[str, Any]]:
    """The reports of a training in order of step, but for the curves, written to `history.json` in its output.

    To those that `history.json` holds come those of the journals: of this start, and of earlier ones with another tracking server.
    """
    path = output / HISTORY
    entries: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    history = {entry["step"]: entry for entry in entries}
    for journal in [Run(str(output / JOURNAL)), *journals]:
        for step, figures in journal.read_figures("loss").items():
            values = {name: value for name, value in figures.items() if "_logsnr_" not in name}
            history[step] = {"step": step, **values, **{name: int(values[name]) for name in _COUNTS if name in values}}
    ordered = [history[step] for step in sorted(history)]
    if ordered != entries:
        write_atomically(path, json.dumps(ordered).encode())
    return ordered
