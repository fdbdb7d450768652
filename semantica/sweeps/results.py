"""What a sweep leaves on the disk, and finds again: a folder a trial, with its settings, a file a figure, and how it ended.

    trials/NAME/trial.json          the settings, written before the trial begins
    trials/NAME/figures/point-03.json   one figure, written once: whoever comes again finds it there
    trials/NAME/figures/point-03.png    samples at that point
    trials/NAME/ended.json          "stopped" (by ASHA) or "diverged", with the reason; a trial that came to its end has none
    trials/NAME/training/           the output of the training: its manifest says that it is whole

A sweep goes on from these files and the checkpoints alone.
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
    """What was measured at one point of a training, and what it cost: seconds since the point before, without the measuring.

    seconds: None where the training began again in between, so that nobody knows.
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
    """A trial as it is on the disk. drawn: what the search chose; flops: of forward and backward for one picture."""

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
        """How it stands; failed: its band could not be trained on; unfinished: what a next start goes on with."""
        if self.ended:
            return self.ended
        return "finished" if self.is_trained and self.final is not None else "unfinished"

    @property
    def final(self) -> float | None:
        """The figure of the last point, when it is there."""
        last = [figure.frechet for figure in self.figures if figure.point == len(self.steps)]
        return last[0] if last else None

    @property
    def reached(self) -> int:
        """The number of the last point that was measured; 0: none."""
        return max((figure.point for figure in self.figures), default=0)

    @property
    def share(self) -> float:
        """The part of its training that was done, as far as figures say."""
        return 1.0 if self.status == "finished" else ([0, *self.steps][self.reached]) / self.steps[-1]


def trial_folder(out: Path, name: str) -> Path:
    """Where a trial is."""
    return out / TRIALS / name


def selection_folder(out: Path, encoder: str, band: BandConfig) -> Path:
    """Where the view of this band over the scores of this encoder is: one for all trials that have it."""
    return out / SELECTIONS / f"{encoder}-{band.score}-{band.low:.6g}_{band.high:.6g}"


def begin(
    out: Path, index: int, name: str, drawn: Mapping[str, Setting], settings: Settings, steps: Sequence[int], flops: float
) -> None:
    """Write down what a trial is, before it begins."""
    about = {"index": index, "name": name, "drawn": dict(drawn), "settings": settings, "steps": list(steps), "flops": flops}
    write_atomically(trial_folder(out, name) / TRIAL, json.dumps(about, indent=1).encode())


def figure_path(folder: Path, point: int) -> Path:
    """The file of a figure, in the folder of a trial."""
    return folder / FIGURES / f"point-{point:02d}.json"


def keep_figure(folder: Path, figure: Figure) -> Figure:
    """The figure of this point as it is on the disk: this one, or the one that was there before it."""
    path = figure_path(folder, figure.point)
    if not path.exists():
        write_atomically(path, json.dumps(asdict(figure)).encode())
    found = read_figure(folder, figure.point)
    assert found is not None
    return found


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
    """Write down that a trial ended before its last point; nothing goes on with it."""
    if not (folder / ENDED).exists():
        write_atomically(folder / ENDED, json.dumps({"ended": how, "reason": reason}).encode())


def read_result(folder: Path) -> Result:
    """The trial in a folder. Raises DataError when a file is damaged."""
    path = folder / TRIAL
    try:
        about: dict[str, Any] = json.loads(path.read_text())
        steps = tuple(about.pop("steps"))
        found = [read_figure(folder, point) for point in range(1, len(steps) + 1)]
        figures = tuple(figure for figure in found if figure is not None)
        path = folder / ENDED
        ended: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"ended": None, "reason": ""}
        is_trained = (folder / TRAINING / MANIFEST).exists()
        return Result(**about, steps=steps, figures=figures, ended=ended["ended"], reason=ended["reason"], is_trained=is_trained)
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"sweep: {path} is damaged or missing ({error}); delete {folder} and run the same command again") from None


def read_results(out: Path) -> list[Result]:
    """All trials that were begun, in the order in which they were."""
    folders = sorted(path.parent for path in (out / TRIALS).glob(f"*/{TRIAL}"))
    return sorted(map(read_result, folders), key=lambda result: result.index)
