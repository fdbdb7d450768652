"""Saving while the training goes on: the training waits for a copy in host memory, a thread writes it and deletes old checkpoints.

In: the state of a training. Out: a checkpoint folder that exists whole or not at all. At most one save is in flight; the next one
waits for it. Several workers write their rows into one temporary folder and speak to each other through that folder alone, so that
a thread may do it while the training uses the network: each leaves a receipt when its files are on disk, the first worker waits for
all receipts, writes the manifest and renames the folder.

A disk that is full or fails does not stop the training at once: every failed save is reported. After a few in a row the training
stops with an error that says why. Any other exception of the thread is raised at the next save, or at the end.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from semantica.data.durable import appearing, marked, new_attempt, partial_of, write_file
from semantica.data.location import explained
from semantica.errors import WeightsError
from semantica.training.checkpoint.format import FileEntry, tensor_file, write_config, write_manifest, write_pieces
from semantica.training.checkpoint.keep import Keeper
from semantica.training.checkpoint.state import HostMemory, Snapshot, TrainState

_POLL_SECONDS = 0.02
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveFailure:
    """A save that left nothing behind. in_a_row: how many failed since the last one that succeeded, this one among them."""

    step: int
    error: OSError | WeightsError
    in_a_row: int


@dataclass(frozen=True)
class Writers:
    """The workers that write one checkpoint together, of which this one is `rank` of `world`.

    attempt: a name that they share, which `durable.new_attempt` gives the first; None for a worker that writes alone. They wait
    patience_s for each other.
    """

    rank: int = 0
    world: int = 1
    attempt: str | None = None
    patience_s: float = 600.0

    def __post_init__(self) -> None:
        if self.world > 1 and self.attempt is None:
            raise ValueError(f"attempt must be a name that all {self.world} workers share, got None")


class Saver:
    """Saves the states of one run, on every worker. Used as a context, it waits for the last save at its end.

    on_failure is called on the writing thread. background False: the training waits for everything, and the files are the same.
    """

    def __init__(
        self,
        keeper: Keeper,
        on_failure: Callable[[SaveFailure], None],
        *,
        max_failures: int = 3,
        background: bool = True,
        writers: Writers = Writers(),
    ) -> None:
        self.keeper, self.on_failure, self.max_failures, self.background = keeper, on_failure, max_failures, background
        self.writers = writers
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
        snapshot = state.snapshot(self._memory, metric=metric, rank=self.writers.rank, world=self.writers.world)
        self._num_saves += 1
        if self.background:
            # No daemon: a process that ends without a word still writes it to the end.
            self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint", daemon=False)
            self._thread.start()
        else:
            self._write(snapshot)
        self.held_seconds += time.perf_counter() - started

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
            if folder.exists():  # loadable: `Keeper.resume` has set damaged ones aside
                _log.info("checkpoint: %s exists already and is not written again", folder)
                return
            attempt = None if self.writers.attempt is None else f"{self.writers.attempt}-{self._num_saves}"
            write_checkpoint(folder, snapshot, replace(self.writers, attempt=attempt))
        except (OSError, WeightsError) as error:
            failure = SaveFailure(snapshot.step, error, len(self._in_a_row) + 1)
            self._in_a_row.append(failure)
            _log.error("checkpoint: step %d was not saved: %s", snapshot.step, explained(error))
            self.on_failure(failure)
            return
        self._in_a_row = []
        if self.writers.rank == 0:
            try:
                self.keeper.prune()
            except OSError as error:  # the save itself is whole; the next one tries again
                _log.error("checkpoint: an old checkpoint in %s was not deleted: %s", self.keeper.folder, explained(error))


def write_checkpoint(folder: Path, snapshot: Snapshot, writers: Writers | None = None) -> None:
    """Write a checkpoint to a folder that does not exist, or is empty. When this returns it is whole, and on disk.

    writers: who writes it, with an attempt of this save alone; None: this worker, alone. Raises OSError from the disk, and
    WeightsError when another worker was not done within `patience_s`; then nothing is left of it.
    """
    writers = writers or Writers(snapshot.rank, snapshot.world)
    attempt, patience_s = writers.attempt or new_attempt(), writers.patience_s
    is_first = snapshot.rank == 0
    with appearing(folder, attempt) if is_first else _contributing(folder, attempt, snapshot, patience_s) as partial:
        names = {kind: tensor_file(kind, snapshot.rank, snapshot.world) for kind in snapshot.pieces}
        entries = [write_pieces(partial / names[kind], kind, pieces) for kind, pieces in snapshot.pieces.items()]
        if not is_first:
            _leave_receipt(partial, snapshot.rank, entries)
            return
        for rank in range(1, snapshot.world):
            entries += _receipt_of(partial, rank, patience_s)
        write_manifest(partial, [*entries, write_config(partial, snapshot.described)])


@contextmanager
def _contributing(folder: Path, attempt: str, snapshot: Snapshot, patience_s: float) -> Iterator[Path]:
    """The first worker's temporary folder; when the block has ended without an exception, wait until that worker has renamed it."""
    partial = partial_of(folder, attempt)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with marked(partial):
            yield partial
    except BaseException:
        _take_back(partial, snapshot)
        with suppress(OSError):  # so that the first worker does not wait in vain; without it, it waits
            _receipt(partial, snapshot.rank).with_suffix(".failed").touch()
        raise
    try:
        _until(lambda: not partial.exists(), patience_s, f"{partial} is still there; the first worker did not finish it")
        if not folder.exists():
            raise WeightsError(f"checkpoint: {folder} was given up by the first worker, whose log says why")  # noqa: TRY301
    except BaseException:
        _take_back(partial, snapshot)
        if partial.exists() and not any(partial.iterdir()):
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _take_back(partial: Path, snapshot: Snapshot) -> None:
    """Remove what this worker put there, and no more: others may still write."""
    own = {tensor_file(kind, snapshot.rank, snapshot.world) for kind in snapshot.pieces}
    receipt = _receipt(partial, snapshot.rank)
    for name in (*own, receipt.name, receipt.with_suffix(".draft").name):
        (partial / name).unlink(missing_ok=True)


def _receipt(partial: Path, rank: int) -> Path:
    return partial / f"receipt-{rank + 1:05d}.json"


def _leave_receipt(partial: Path, rank: int, entries: list[FileEntry]) -> None:
    """Say that the files of this worker are on disk, and what they are."""
    receipt = _receipt(partial, rank)
    draft = receipt.with_suffix(".draft")
    write_file(draft, [json.dumps([asdict(entry) for entry in entries]).encode()])
    draft.rename(receipt)


def _receipt_of(partial: Path, rank: int, patience_s: float) -> list[FileEntry]:
    path = _receipt(partial, rank)
    failed = path.with_suffix(".failed")
    _until(lambda: path.exists() or failed.exists(), patience_s, f"{path} is missing: worker {rank} did not write its share")
    if failed.exists():
        raise WeightsError(f"checkpoint: worker {rank} could not write its share of {partial}; its log says why")
    entries = [FileEntry(**entry) for entry in json.loads(path.read_text())]
    path.unlink()
    return entries


def _until(holds: Callable[[], bool], patience_s: float, otherwise: str) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > deadline:
            raise WeightsError(f"checkpoint: {otherwise} within {patience_s:.0f} s")
        time.sleep(_POLL_SECONDS)
