"""Saving while the training goes on: the training waits for a copy in host memory, a thread writes it and deletes what is not kept.

At most one save is in flight; the next one waits for it. A disk that is full or fails does not stop the training at once: every
failed save is reported, and after a few in a row the training is stopped with an error that says why. Any other exception of the
writer is raised at the next save, or at the end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from semantica.data.location import explained
from semantica.errors import WeightsError
from semantica.training.checkpoint import TrainState
from semantica.training.keeper import Keeper
from semantica.training.snapshot import HostMemory, Snapshot
from semantica.training.writing import write_checkpoint

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveFailure:
    """A save that left nothing behind. in_a_row: how many failed since the last one that succeeded, this one among them."""

    step: int
    error: OSError | WeightsError
    in_a_row: int


class Saver:
    """Saves the states of one run, on every worker. Used as a context: at its end the last save is waited for.

    on_failure is called on the writer's thread. background False: the training waits for everything, and the files are the same.
    Several workers need the same attempt, which `durable.new_attempt` gives the first, and wait patience_s for each other.
    """

    def __init__(
        self,
        keeper: Keeper,
        on_failure: Callable[[SaveFailure], None],
        *,
        max_failures: int = 3,
        background: bool = True,
        rank: int = 0,
        world: int = 1,
        attempt: str | None = None,
        patience_s: float = 600.0,
    ) -> None:
        self.keeper, self.on_failure, self.max_failures, self.background = keeper, on_failure, max_failures, background
        self.rank, self.world, self.attempt, self.patience_s = rank, world, attempt, patience_s
        self.held_seconds = 0.0  # that all saves together have kept the training waiting
        self._memory = HostMemory()
        self._thread: threading.Thread | None = None
        self._num_saves = 0
        self._in_a_row: list[SaveFailure] = []
        self._defect: BaseException | None = None

    def save(self, state: TrainState, metric: float | None = None) -> None:
        """Save the state, when the save before is done. metric: what `keep.best` goes by.

        Raises WeightsError when max_failures saves in a row have failed, and whatever else the writer raised.
        """
        started = time.perf_counter()
        self.wait()
        self.check()
        snapshot = state.snapshot(self._memory, metric=metric, rank=self.rank, world=self.world)
        self._num_saves += 1
        if self.background:
            # No daemon: a process that ends without a word still writes it to the end.
            self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint", daemon=False)
            self._thread.start()
        else:
            self._write(snapshot)
        self.held_seconds += time.perf_counter() - started

    @property
    def in_flight(self) -> bool:
        """True while a save is being written."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Come back when no save is in flight."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def check(self) -> None:
        """Raise what stops the training, if anything has: cheap, and may be called at every step."""
        if self._defect is not None:
            defect, self._defect = self._defect, None
            raise defect
        if len(self._in_a_row) >= self.max_failures:
            self._give_up()

    def close(self) -> None:
        """Wait for the last save. Raises what `check` raises, and WeightsError when the last save failed."""
        self.wait()
        self.check()
        if self._in_a_row:
            self._give_up()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        self.wait()  # what ends the training is not hidden by what became of its last save
        if self._defect is not None:
            _log.error("checkpoint: the last save failed", exc_info=self._defect)

    def _give_up(self) -> None:
        last, steps = self._in_a_row[-1], self.keeper.steps()
        newest = f"the newest checkpoint is {self.keeper.folder_of(steps[-1])}" if steps else f"{self.keeper.folder} has none"
        raise WeightsError(
            f"checkpoint: {last.in_a_row} saves in a row failed, the last at step {last.step}: {explained(last.error)}; "
            f"{newest}; make room or mend the disk, and run the same command again"
        )

    def _write(self, snapshot: Snapshot) -> None:
        try:
            self._write_and_prune(snapshot)
        except BaseException as error:  # noqa: BLE001 - it is raised on the training's own thread, at the next save
            self._defect = error

    def _write_and_prune(self, snapshot: Snapshot) -> None:
        folder = self.keeper.folder_of(snapshot.step)
        try:
            if not (self.keeper.ready_for(snapshot.step) if self.rank == 0 else not folder.exists()):
                _log.info("checkpoint: %s is there already", folder)
                return
            attempt = None if self.attempt is None else f"{self.attempt}-{self._num_saves}"
            write_checkpoint(folder, snapshot, attempt=attempt, patience_s=self.patience_s)
        except (OSError, WeightsError) as error:
            failure = SaveFailure(snapshot.step, error, len(self._in_a_row) + 1)
            self._in_a_row.append(failure)
            _log.error("checkpoint: step %d was not saved: %s", snapshot.step, explained(error))
            self.on_failure(failure)
            return
        self._in_a_row = []
        if self.rank == 0:
            try:
                self.keeper.prune()
            except OSError as error:  # the save itself is whole; the next one tries again
                _log.error("checkpoint: an old checkpoint in %s was not deleted: %s", self.keeper.folder, explained(error))
