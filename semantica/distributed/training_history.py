"""The history of the losses on the disk, complete whatever is killed: the first worker writes each report down before it saves what
comes after, a line a report; the driver makes `history.json` of the lines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semantica.data.durable import write_atomically

HISTORY, JOURNAL = "history.json", "history.jsonl"


class Journal:
    """Adds a line for every report. Lines of an earlier attempt stay: of one step, the last line counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            self._write("\n")  # whoever was killed may have left half a line

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Write a report down, but for the curves, at once."""
        kept = {name: value for name, value in figures.items() if "_logsnr_" not in name}
        self._write(json.dumps({"step": step, **kept}) + "\n")

    def _write(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)


def complete_history(folder: Path) -> list[dict[str, Any]]:
    """The reports so far, in order of step: those of `history.json` and, over them, those of the journal. Writes the former."""
    path = folder / HISTORY
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    by_step = {entry["step"]: entry for entry in [*found, *_lines(folder / JOURNAL)]}
    history = [by_step[step] for step in sorted(by_step)]
    if history:
        write_atomically(path, json.dumps(history).encode())
    return history


def _lines(path: Path) -> list[dict[str, Any]]:
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:  # half a line, of a worker that was killed; its step was made again
            continue
    return entries
