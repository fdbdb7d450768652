"""Which folder is the checkpoint: a checkpoint, an output of semantica train, or an output of a pipeline that trained.

A module of its own because everything that takes --checkpoint asks it: generation, evaluation, release, the jobs.
"""

from __future__ import annotations

from pathlib import Path

from semantica.errors import DataError
from semantica.training.checkpoint.format import CONFIG
from semantica.training.checkpoint.keep import Keeper
from semantica.training.recipe import KeepConfig

_RUN, _MODEL, _KEPT = "checkpoint", "model", "checkpoints"  # in a pipeline's output; in the output of semantica train


def checkpoint_folder(folder: Path) -> Path:
    """The checkpoint at `folder` or below it: the finished one, else the newest one of a training that is not finished.

    Raises DataError when there is none.
    """
    return checkpoint_folders(folder)[-1]


def checkpoint_folders(folder: Path) -> list[Path]:
    """Every checkpoint that was kept, the last one last. Raises DataError when there is none."""
    folder = folder.expanduser().absolute()
    for place in (folder, folder / _RUN):
        if (place / CONFIG).exists():
            return [place]
        keeper = Keeper(place / _KEPT if (place / _KEPT).is_dir() else place, KeepConfig())
        steps = [keeper.folder_of(step) for step in keeper.steps()]
        model = [place / _MODEL] if (place / _MODEL / CONFIG).exists() else []
        if steps or model:
            return [*steps, *model]
    raise DataError(
        f"checkpoint: {folder} must be a checkpoint, the output of semantica train or a folder with one as {_RUN}/; it is neither"
    )
