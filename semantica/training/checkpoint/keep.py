"""The folder of a run's checkpoints: one folder per step, the newest loadable one to resume from, and when which is deleted.

One worker owns it: it alone resumes, prunes and sets aside, and it alone reads every byte to compare hashes. The others read what
it names. Only folders of steps are ever touched, and temporary folders that nobody writes any more (`durable` knows which).
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from semantica.data.durable import remove_abandoned, remove_folder, sync_folder
from semantica.errors import WeightsError
from semantica.training.checkpoint.format import CONFIG, DamagedCheckpoint
from semantica.training.checkpoint.state import Checkpoint, open_checkpoint
from semantica.training.recipe import KeepConfig

_STEM = "step-"
_NAME = re.compile(rf"\A{_STEM}(\d{{9,}})\Z")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keeper:
    """The checkpoints in `folder`, of which those stay that `keep` wants."""

    folder: Path
    keep: KeepConfig

    def folder_of(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.folder / f"{_STEM}{step:09d}"

    def steps(self) -> list[int]:
        """The steps that have a folder, loadable or not, the oldest first."""
        names = [p.name for p in self.folder.iterdir()] if self.folder.exists() else []
        return sorted(int(found[1]) for name in names if (found := _NAME.match(name)))

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step that another process has found loadable: sizes are compared, bytes are not read again."""
        return open_checkpoint(self.folder_of(step), verify=False)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is what was written; None in an empty folder. Changes nothing.

        Raises WeightsError when there are checkpoints and none is loadable, or when the newest undamaged one is of another version.
        """
        return self._search_for_one()[0]

    def resume(self) -> Checkpoint | None:
        """`newest`, after which damaged checkpoints of later steps are called damaged-..., so that these steps can be saved again.

        Temporary folders that nobody writes any more are removed. Every such change is logged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        sync_folder(self.folder.parent)
        for partial in remove_abandoned(self.folder, _STEM):
            _log.warning("checkpoint: %s was never finished and is removed", partial)
        newest, damaged = self._search_for_one()
        for step, error in damaged:
            _log.warning("%s; it is called %s now, and an earlier one is used", error, self._set_aside(step).name)
        return newest

    def prune(self) -> list[int]:
        """The steps whose checkpoints were deleted: those that `keep` does not want. Never the newest loadable one."""
        metrics = {step: _metric(self.folder_of(step)) for step in self.steps()}
        unwanted = sorted(metrics.keys() - self.keep.steps(metrics))
        if not unwanted:
            return []
        # Read back from the disk: what was just written may be damaged already.
        newest, _ = self._search()
        deleted = [step for step in unwanted if newest is not None and step != newest.step]
        for step in deleted:
            remove_folder(self.folder_of(step))
        return deleted

    def _search(self) -> tuple[Checkpoint | None, list[tuple[int, DamagedCheckpoint]]]:
        """The newest loadable checkpoint, and the damaged ones of later steps, the newest first. Every byte of them is read."""
        damaged: list[tuple[int, DamagedCheckpoint]] = []
        for step in reversed(self.steps()):
            try:
                return open_checkpoint(self.folder_of(step)), damaged
            except DamagedCheckpoint as error:
                damaged.append((step, error))
        return None, damaged

    def _search_for_one(self) -> tuple[Checkpoint | None, list[tuple[int, DamagedCheckpoint]]]:
        """What `_search` gives. Raises WeightsError when all are damaged."""
        loadable, damaged = self._search()
        if loadable is None and damaged:
            raise WeightsError(
                f"checkpoint: none of the {len(damaged)} checkpoints in {self.folder} is loadable; the last: {damaged[0][1]}; "
                "delete the folder to train from the start"
            )
        return loadable, damaged

    def _set_aside(self, step: int) -> Path:
        folder = self.folder_of(step)
        aside = folder.with_name(f"damaged-{folder.name}-{uuid.uuid4().hex[:8]}")
        folder.rename(aside)
        sync_folder(self.folder)
        return aside


def _metric(folder: Path) -> float | None:
    """The metric that a checkpoint was saved with. None where that cannot be read: such a one is not the best."""
    try:
        metric = json.loads((folder / CONFIG).read_text())["metric"]
        return None if metric is None else float(metric)
    except (OSError, ValueError, KeyError, TypeError):
        return None
