"""How what training says comes from its first worker to a person: reports and pictures into the spool of the run (and from there to
MLflow), reports into the journal that `history.json` is made of, and all through an actor to the driver and its progress bar.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import ray

from semantica.distributed.training_history import Journal
from semantica.distributed.training_pictures import levels_svg
from semantica.progress import Meter
from semantica.tracking import Run
from semantica.training.recipe import TrainConfig

FRECHET = "frechet"  # in MLflow, of a trial of a sweep
_log = logging.getLogger(__name__)


class Recorder:
    """Puts reports and pictures into a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.known = {step: figures["loss"] for step, figures in run.recorded("loss").items()}  # by earlier starts, too
        self.points = set(run.recorded(FRECHET))

    def put(self, item: dict[str, Any]) -> None:
        """Record it. A step that comes again after a restart, with the same loss, is there already."""
        if "samples" in item:
            self.run.image(item["samples"], f"samples-{item['step']:07d}")
        if "figures" in item and item["step"] not in self.points:
            self.run.metrics(item["figures"], step=item["step"])
            self.points.add(item["step"])
        if "metrics" in item and self.known.get(item["step"]) != item["metrics"]["loss"]:
            self.run.metrics(item["metrics"], step=item["step"])
            self.known[item["step"]] = item["metrics"]["loss"]


class Reporter:
    """The first worker's way to say something: into journal and spool at once, and to the mailbox. It waits for nobody.

    So a report is on the disk before the checkpoint after it, whoever dies: a worker may outlive the driver and the mailbox by a
    checkpoint. Where the spool is not to be seen (a disk of the driver's machine), the driver records what the mailbox has.
    """

    def __init__(self, mailbox: Any, run: Run, journal: Journal) -> None:
        self.mailbox, self.journal = mailbox, journal
        self.recorder = Recorder(run) if not run.folder or Path(run.folder).is_dir() else None

    def put(self, item: dict[str, Any]) -> None:
        """Say it."""
        if "metrics" in item:
            self.journal.add(item["step"], item["metrics"])
        if self.recorder is not None:
            self.recorder.put(item)
            item = {**{name: value for name, value in item.items() if name != "samples"}, "recorded": True}
        self.mailbox.put.remote(item)


class Mailbox:
    """Reports and pictures on their way from the first worker to the driver, for which no worker waits; and what the workers of one
    attempt leave to know for those of the next.
    """

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.failed_at: int | None = None  # the step up to which steps in a row were not finite
        self.stopped = ""  # why there is no next attempt

    def put(self, item: dict[str, Any]) -> None:
        self.items.append(item)

    def take(self) -> list[dict[str, Any]]:
        taken, self.items = self.items, []
        return taken

    def fail(self, step: int) -> None:
        self.failed_at = step

    def last_failure(self) -> int | None:
        return self.failed_at

    def stop(self, reason: str) -> None:
        self.stopped = reason

    def why_stopped(self) -> str:
        return self.stopped


class Follower:
    """Takes reports out of the mailbox while the trainer runs: into the progress bar, and into the run what the worker could not
    record itself.
    """

    def __init__(self, mailbox: Any, run: Run, config: TrainConfig) -> None:
        self.mailbox, self.run = mailbox, run
        self.meter = Meter("train", config.num_steps, "steps")
        self.stop = threading.Event()
        self.last: dict[str, Any] = {"levels": []}
        self.recorder = Recorder(run)
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self.meter.__enter__()
        self.thread.start()

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        self.thread.join()
        self._take()
        if self.last["levels"]:
            self.run.bytes(levels_svg(self.last["levels"], self.last["step"]).encode(), "loss_by_logsnr.svg")
        self.meter.__exit__(*exc)

    def _follow(self) -> None:
        while not self.stop.wait(1.0):
            self._take()

    def _take(self) -> None:
        for item in ray.get(self.mailbox.take.remote()):
            step = item["step"]
            if not item.get("recorded"):
                self.recorder.put(item)
            if "save_failed" in item:
                _log.error("train: step %d was not saved: %s (%d in a row)", step, item["save_failed"], item["in_a_row"])
            if "metrics" not in item:
                continue
            self.last, figures = item, item["metrics"]
            skipped = f", {figures['num_skipped']} steps skipped" if figures["num_skipped"] else ""
            self.meter.advance(step - self.meter.done, f"loss {figures['loss']:.3f}{skipped}")
