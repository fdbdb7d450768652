"""The files of a sweep: one folder per trial, with its settings, one file per figure, and how the trial ended.

    trials/NAME/trial.json              the settings, written before the trial starts
    trials/NAME/figures/point-03.json   one figure, written once and never measured again
    trials/NAME/figures/point-03.png    samples at that point
    trials/NAME/ended.json              "stopped", "diverged" or "failed", with the reason; a finished trial has none
    trials/NAME/training/               the output of the training, with a manifest when it is finished

A sweep resumes from these files and the checkpoints alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from semantica.data.dataset import MANIFEST
from semantica.data.durable import write_atomically
from semantica.errors import DataError
from semantica.pairs.selection import BandConfig
from semantica.sweeps.space import Drawn, Setting, Settings

TRIALS, TRIAL, FIGURES, ENDED, TRAINING = "trials", "trial.json", "figures", "ended.json", "training"
SELECTIONS = "selections"
Ending = Literal["stopped", "diverged", "failed"]
Status = Literal["finished", "stopped", "diverged", "failed", "unfinished"]


@dataclass(frozen=True)
class Figure:
    """The measurement at one point of a training, and its cost.

    seconds: since the previous point, without the measuring; None when the training was restarted in between.
    """

    point: int  # from 1
    step: int
    frechet: float
    num_samples: int
    num_reference: int
    extractor: str
    seconds: float | None
    measuring_seconds: float


@dataclass(frozen=True)
class Result:
    """A trial on disk. drawn: the values that the search chose. flops: of one training step, forward and backward."""

    index: int
    name: str
    drawn: Drawn
    settings: Settings
    steps: tuple[int, ...]  # of its points
    flops: float
    figures: tuple[Figure, ...]
    ended: Ending | None
    reason: str
    is_trained: bool

    @property
    def status(self) -> Status:
        """The state of the trial. failed: its band could not be trained on. unfinished: the next start resumes it."""
        if self.ended:
            return self.ended
        return "finished" if self.is_trained and self.final is not None else "unfinished"

    @property
    def final(self) -> float | None:
        """The figure of the last point; None before it was measured."""
        last = [figure.frechet for figure in self.figures if figure.point == len(self.steps)]
        return last[0] if last else None

    @property
    def reached(self) -> int:
        """The number of the last measured point; 0 for none."""
        return max((figure.point for figure in self.figures), default=0)

    @property
    def share(self) -> float:
        """The share of the training up to the last measured point."""
        return 1.0 if self.status == "finished" else ([0, *self.steps][self.reached]) / self.steps[-1]


def trial_folder(out: Path, name: str) -> Path:
    """The folder of a trial."""
    return out / TRIALS / name


def selection_folder(out: Path, encoder: str, band: BandConfig) -> Path:
    """The folder of the selection of this band over this encoder's scores. All trials with the band share it."""
    return out / SELECTIONS / f"{encoder}-{band.score}-{band.low:.6g}_{band.high:.6g}"


def begin(
    out: Path, index: int, name: str, drawn: Mapping[str, Setting], settings: Settings, steps: Sequence[int], flops: float
) -> None:
    """Write the settings of a trial, before it starts."""
    about = {"index": index, "name": name, "drawn": dict(drawn), "settings": settings, "steps": list(steps), "flops": flops}
    write_atomically(trial_folder(out, name) / TRIAL, json.dumps(about, indent=1).encode())


def figure_path(folder: Path, point: int) -> Path:
    """The file of a figure, in the folder of a trial."""
    return folder / FIGURES / f"point-{point:02d}.json"


def keep_figure(folder: Path, figure: Figure) -> Figure:
    """Write the figure unless its point has one already. Returns the figure on disk."""
    path = figure_path(folder, figure.point)
    if not path.exists():
        write_atomically(path, json.dumps(asdict(figure)).encode())
    stored = read_figure(folder, figure.point)
    assert stored is not None
    return stored


def read_figure(folder: Path, point: int) -> Figure | None:
    """The figure of a point; None when there is none. Raises DataError when its file is damaged."""
    path = figure_path(folder, point)
    try:
        return Figure(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise DataError(f"sweep: {path} is damaged ({error}); delete {folder} and run the same command again") from None


def end(folder: Path, how: Ending, reason: str) -> None:
    """Write that a trial ended before its last point. No start resumes it."""
    if not (folder / ENDED).exists():
        write_atomically(folder / ENDED, json.dumps({"ended": how, "reason": reason}).encode())


def read_result(folder: Path) -> Result:
    """The trial in a folder. Raises DataError when a file is damaged."""
    path = folder / TRIAL
    try:
        about: dict[str, Any] = json.loads(path.read_text())
        steps = tuple(about.pop("steps"))
        points = [read_figure(folder, point) for point in range(1, len(steps) + 1)]
        figures = tuple(figure for figure in points if figure is not None)
        path = folder / ENDED
        ended: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"ended": None, "reason": ""}
        is_trained = (folder / TRAINING / MANIFEST).exists()
        return Result(**about, steps=steps, figures=figures, ended=ended["ended"], reason=ended["reason"], is_trained=is_trained)
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"sweep: {path} is damaged or missing ({error}); delete {folder} and run the same command again") from None


def read_results(out: Path) -> list[Result]:
    """All trials started so far, in the order of their start."""
    folders = sorted(path.parent for path in (out / TRIALS).glob(f"*/{TRIAL}"))
    return sorted(map(read_result, folders), key=lambda result: result.index)
