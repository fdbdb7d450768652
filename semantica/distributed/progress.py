"""Progress of long work: a bar on a terminal; elsewhere (a job's log, CI) one plain line every 15 seconds."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 15.0


class Meter:
    """A bar with a name, a total and a changing note; use as a context manager and call `advance`."""

    def __init__(self, name: str, total: int, unit: str = "") -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, 0
        self._started = self._said = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Meter:
        console = Console(file=sys.stderr)
        if console.is_terminal:
            columns = (
                TextColumn("  {task.description:<9}"),
                BarColumn(bar_width=32),
                MofNCompleteColumn(),
                TextColumn(self.unit),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=console)
            self._bar.start()
            self._task = self._bar.add_task(self.name, total=self.total, note="")
        return self

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` more as done; `note` is a short text such as the current loss."""
        self.done += amount
        if self._bar is not None:
            self._bar.update(self._task, advance=amount, note=note)
        elif time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            seconds = self._said - self._started
            print(
                f"  {self.name}: {self.done}/{self.total} {self.unit} in {seconds:.0f} s {note}".rstrip(),
                file=sys.stderr,
                flush=True,
            )

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
