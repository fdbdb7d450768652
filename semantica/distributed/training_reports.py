"""How what training says comes from its first worker to a person: reports and pictures through an actor into the spool of the run
(and from there to MLflow), the progress bar and `history.json`.
"""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import ray

from semantica.distributed.training_pictures import levels_svg
from semantica.progress import Meter
from semantica.storage import write_atomically
from semantica.tracking import Run
from semantica.training.recipe import TrainConfig

HISTORY = "history.json"
_log = logging.getLogger(__name__)


class Recorder:
    """Puts reports and pictures into a run, where they are safe from then on."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.known = run.recorded("loss")  # by an earlier start of the same run

    def put(self, item: dict[str, Any]) -> None:
        """Record it. A step that comes again after a restart, with the same loss, is there already."""
        if "samples" in item:
            self.run.image(item["samples"], f"samples-{item['step']:07d}")
        elif "metrics" in item and self.known.get(item["step"]) != item["metrics"]["loss"]:
            self.run.metrics(item["metrics"], step=item["step"])
            self.known[item["step"]] = item["metrics"]["loss"]


class Mailbox:
    """Reports and pictures on their way from the first worker to the driver, for which no worker waits; and what the workers of one
    attempt leave to know for those of the next.
    """

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.recorder: Recorder | None = None
        self.failed_at: int | None = None  # the step up to which steps in a row were not finite
        self.stopped = ""  # why there is no next attempt

    def record_into(self, run: Run) -> bool:
        """Record all that comes, at once: a driver that dies later takes nothing with it. False when its disk is not to be seen."""
        if not run.folder or Path(run.folder).is_dir():
            self.recorder = Recorder(run)
        return self.recorder is not None

    def put(self, item: dict[str, Any]) -> None:
        if self.recorder is not None:
            self.recorder.put(item)
        self.items.append({name: value for name, value in item.items() if name != "samples" or self.recorder is None})

    def take(self) -> list[dict[str, Any]]:
        if self.recorder is not None:
            self.recorder.run.settle()
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
    """Takes reports out of the mailbox while the trainer runs: into the progress bar and `history.json`; and with the pictures into
    the run, where the mailbox is on another machine and cannot.
    """

    def __init__(self, mailbox: Any, run: Run, config: TrainConfig, folder: Path) -> None:
        self.mailbox, self.run, self.folder = mailbox, run, folder
        self.meter = Meter("train", config.num_steps, "steps")
        path = folder / HISTORY
        self.history: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
        self.stop = threading.Event()
        self.last: dict[str, Any] = {"levels": []}
        self.recorder: Recorder | None = None
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        if not ray.get(self.mailbox.record_into.remote(self.run)):
            self.recorder = Recorder(self.run)
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
        items = ray.get(self.mailbox.take.remote())
        for item in items:
            step = item["step"]
            if self.recorder is not None:
                self.recorder.put(item)
            if "save_failed" in item:
                _log.error("train: step %d was not saved: %s (%d in a row)", step, item["save_failed"], item["in_a_row"])
            if "metrics" not in item:
                continue
            self.last, figures = item, item["metrics"]
            # A restarted group repeats the steps since the last checkpoint: the later report of a step stands.
            report = {"step": step, **{name: value for name, value in figures.items() if "_logsnr_" not in name}}
            self.history = [h for h in self.history if h["step"] < step] + [report]
            skipped = f", {figures['num_skipped']} steps skipped" if figures["num_skipped"] else ""
            self.meter.advance(step - self.meter.done, f"loss {figures['loss']:.3f}{skipped}")
        if items:
            write_atomically(self.folder / HISTORY, json.dumps(self.history).encode())
