"""A snapshot becomes a checkpoint folder: by one worker, or by several that each write their rows into the same temporary folder.

Workers speak to each other through that folder alone, so that a thread may do it while the training uses the network: each leaves a
receipt when its files are on the disk, the first waits for all receipts, writes the manifest and gives the folder its name.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from semantica.data.durable import appearing, marked, new_attempt, partial_of, write_file
from semantica.errors import WeightsError
from semantica.training.manifest import CONFIG, FileEntry, tensor_file, write_manifest
from semantica.training.snapshot import Snapshot
from semantica.training.tensor_files import write_pieces

_POLL_SECONDS = 0.02


def write_checkpoint(folder: Path, snapshot: Snapshot, *, attempt: str | None = None, patience_s: float = 600.0) -> None:
    """Write a checkpoint to a folder that is not there, or empty. When this returns it is there, whole, on the disk.

    attempt: the same on all workers, and of this save alone; needed when there are several. Raises OSError from the disk, and
    WeightsError when another worker was not done within patience_s; then nothing is left of it.
    """
    if snapshot.world > 1 and attempt is None:
        raise ValueError(f"attempt must be a name that all {snapshot.world} workers share, got None")
    attempt = attempt or new_attempt()
    if snapshot.rank > 0:
        _contribute(folder, snapshot, attempt, patience_s)
        return
    with appearing(folder, attempt) as partial:
        entries = _write_tensors(partial, snapshot)
        for rank in range(1, snapshot.world):
            entries += _receipt_of(partial, rank, patience_s)
        text = json.dumps(snapshot.described, indent=1).encode()
        written = write_file(partial / CONFIG, [text])
        write_manifest(partial, [*entries, FileEntry(CONFIG, "config", written.num_bytes, written.sha256)])


def _contribute(folder: Path, snapshot: Snapshot, attempt: str, patience_s: float) -> None:
    partial = partial_of(folder, attempt)
    partial.mkdir(parents=True, exist_ok=True)
    receipt = _receipt(partial, snapshot.rank)
    try:
        with marked(partial):
            entries = _write_tensors(partial, snapshot)
            draft = receipt.with_suffix(".draft")
            write_file(draft, [json.dumps([asdict(entry) for entry in entries]).encode()])
            draft.rename(receipt)
    except BaseException:
        _take_back(partial, snapshot)
        with suppress(OSError):  # so that the first worker does not wait in vain; without it, it waits
            receipt.with_suffix(".failed").touch()
        raise
    try:
        _until(lambda: not partial.exists(), patience_s, f"{partial} is still there; the first worker did not finish it")
        _require_published(folder)
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


def _require_published(folder: Path) -> None:
    if not folder.exists():
        raise WeightsError(f"checkpoint: {folder} was given up by the first worker, whose log says why")


def _write_tensors(partial: Path, snapshot: Snapshot) -> list[FileEntry]:
    entries = []
    for kind, pieces in snapshot.pieces.items():
        name = tensor_file(kind, snapshot.rank, snapshot.world)
        written = write_pieces(partial / name, pieces)
        first, last = (min(pieces), max(pieces)) if pieces else ("", "")
        entries.append(FileEntry(name, kind, written.num_bytes, written.sha256, first, last))
    return entries


def _receipt(partial: Path, rank: int) -> Path:
    return partial / f"receipt-{rank + 1:05d}.json"


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
