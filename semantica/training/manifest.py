"""The manifest of a checkpoint folder: which files it has, their sizes and SHA-256, and which of them hold which tensors.

It is written last. It holds a hash of itself, so a bit that flips in it is found like one in any other file, and it lists for every
kind of tensor (weights, EMA, optimizer) one file, or as many as workers wrote. A folder whose files are those is a checkpoint;
anything else is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from semantica.data.durable import write_file
from semantica.data.location import file_sha256
from semantica.errors import WeightsError

FORMAT = 2
MANIFEST, CONFIG = "manifest.json", "config.json"
KINDS = ("model", "ema", "optimizer")
_SUFFIX = ".safetensors"
_MEND = "use an earlier checkpoint, or delete the output of jobs.train and run it again"


class DamagedCheckpoint(WeightsError):
    """A checkpoint folder that is not what was written: a file is missing, damaged, or of another save."""


@dataclass(frozen=True)
class FileEntry:
    """One file. kind: of its tensors, or "config". first, last: the least and the greatest of their names, "" without tensors."""

    name: str
    kind: str
    num_bytes: int
    sha256: str
    first: str = ""
    last: str = ""


def tensor_file(kind: str, rank: int, world: int) -> str:
    """The name of the file of worker `rank`."""
    return f"{kind}{_SUFFIX}" if world == 1 else f"{kind}-{rank + 1:05d}-of-{world:05d}{_SUFFIX}"


def write_manifest(folder: Path, files: Sequence[FileEntry]) -> None:
    """Write the manifest of a folder whose other files are there."""
    write_file(folder / MANIFEST, [_sealed([asdict(file) for file in files], FORMAT)])


def checked_files(folder: Path) -> tuple[FileEntry, ...]:
    """The files of a checkpoint, every byte of them read and found to be what was written. Raises WeightsError naming what is not.

    A missing or damaged file is a DamagedCheckpoint; a manifest of another format, or of a whole stage, is not.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise DamagedCheckpoint(f"checkpoint: {folder} has no {MANIFEST}, so it is no finished checkpoint; run jobs.train")
    files = _read(path)
    for file in files:
        path = folder / file.name
        if (fault := _fault(path, file)) is not None:
            raise DamagedCheckpoint(f"checkpoint: {path} is {fault}; {_MEND}")
    # A stranger's notes do no harm. Tensors that the manifest does not know are of another save.
    strange = sorted({p.name for p in folder.glob(f"*{_SUFFIX}")} - {file.name for file in files})
    if strange:
        raise DamagedCheckpoint(f"checkpoint: {folder / strange[0]} is not of this checkpoint; take it out of the folder")
    return files


def _fault(path: Path, file: FileEntry) -> str | None:
    """What is wrong with a file, None when it is what was written."""
    try:
        if (size := path.stat().st_size) != file.num_bytes:
            return f"damaged (it has {size} bytes, expected {file.num_bytes})"
        return None if file_sha256(path) == file.sha256 else "damaged (its SHA-256 is not the manifest's)"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"damaged (the disk does not give it back: {error.strerror})"


def _read(path: Path) -> tuple[FileEntry, ...]:
    damaged = DamagedCheckpoint(f"checkpoint: {path} is damaged; {_MEND}")
    data = path.read_bytes()
    try:
        values = json.loads(data)
    except ValueError:
        raise damaged from None
    if not isinstance(values, dict):
        raise damaged
    if "kind" in values and (path.parent / "model" / MANIFEST).exists():
        raise WeightsError(
            f"checkpoint: {path.parent} is the whole output of jobs.train; its checkpoint is {path.parent / 'model'}"
        )
    try:
        if data == _sealed(values["files"], values["format"]):
            if values["format"] != FORMAT:
                raise WeightsError(f"checkpoint: {path.parent} has format {values['format']}, expected {FORMAT}; train it again")
            files = tuple(FileEntry(**file) for file in values["files"])
            if all(Path(file.name).name == file.name for file in files) and {f.kind for f in files} == {*KINDS, "config"}:
                return files
    except (KeyError, TypeError):
        pass
    raise damaged


def _sealed(files: Sequence[Any], version: Any) -> bytes:
    """The one text that says this: no other text is read as it, so no bit of it can flip unseen."""
    facts = {"format": version, "files": files}
    seal = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return json.dumps({**facts, "seal": seal}, indent=1).encode() + b"\n"
