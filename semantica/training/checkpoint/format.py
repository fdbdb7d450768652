"""The files of a checkpoint: what is written, and what is read back. Nothing here knows a network.

    model.safetensors      weights; of N workers model-00001-of-0000N.safetensors, ..., each with its rows of every tensor
    ema.safetensors, optimizer.safetensors
    config.json            configuration, step, provenance, metric, counters
    manifest.json          written last: size and SHA-256 of every file, the first and last name of its tensors, a hash of itself

In: named tensors, of which a worker has all or its rows. Out: files that are hashed while they are written; and from files, the
rows that a worker asks for. A split file says in its metadata which rows of which tensor it holds. Without that it is an ordinary
safetensors file, byte for byte what safetensors itself writes. A folder whose files are those of its manifest is a checkpoint;
anything else is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from semantica.data.durable import write_file
from semantica.data.location import file_sha256
from semantica.errors import WeightsError
from semantica.training.parallel import local, place, row_range

FORMAT = 2
MANIFEST, CONFIG = "manifest.json", "config.json"
KINDS = ("model", "ema", "optimizer")
_SUFFIX = ".safetensors"
_MEND = "use an earlier checkpoint, or delete the output of semantica train and run it again"


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


def write_config(folder: Path, described: Mapping[str, Any]) -> FileEntry:
    """Write the file of everything that is no tensor."""
    written = write_file(folder / CONFIG, [json.dumps(described, indent=1).encode()])
    return FileEntry(CONFIG, "config", written.num_bytes, written.sha256)


def write_manifest(folder: Path, files: Sequence[FileEntry]) -> None:
    """Write the manifest of a folder whose other files are there."""
    write_file(folder / MANIFEST, [_sealed([asdict(file) for file in files], FORMAT)])


def checked_files(folder: Path, *, verify: bool = True) -> tuple[FileEntry, ...]:
    """The files of a checkpoint. Raises WeightsError naming the one that is not what was written.

    verify: read every byte and compare its hash; without it, sizes only. A missing or damaged file is a DamagedCheckpoint; a
    manifest of another format, or of a whole stage, is not.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise DamagedCheckpoint(f"checkpoint: {folder} has no {MANIFEST}, so it is no finished checkpoint; run semantica train")
    files = _read(path)
    for file in files:
        path = folder / file.name
        if (fault := _fault(path, file, verify)) is not None:
            raise DamagedCheckpoint(f"checkpoint: {path} is {fault}; {_MEND}")
    # A stranger's notes do no harm. Tensors that the manifest does not know are of another save.
    strange = sorted({p.name for p in folder.glob(f"*{_SUFFIX}")} - {file.name for file in files})
    if strange:
        raise DamagedCheckpoint(f"checkpoint: {folder / strange[0]} is not of this checkpoint; take it out of the folder")
    return files


def _fault(path: Path, file: FileEntry, verify: bool) -> str | None:
    """What is wrong with a file, None when it is what was written."""
    try:
        if (size := path.stat().st_size) != file.num_bytes:
            return f"damaged (it has {size} bytes, expected {file.num_bytes})"
        if not verify or file_sha256(path) == file.sha256:
            return None
        return "damaged (its SHA-256 is not the manifest's)"  # noqa: TRY300
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
            f"checkpoint: {path.parent} is the whole output of semantica train; its checkpoint is {path.parent / 'model'}"
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


_ROWS = "rows"
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """Rows [start, start + len(tensor)) of a tensor that has `rows` rows. rows None: a scalar or an empty tensor, whole."""

    tensor: Tensor
    start: int = 0
    rows: int | None = None

    @property
    def is_whole(self) -> bool:
        """True when there are no other pieces."""
        return self.rows is None or len(self.tensor) == self.rows


def share(tensors: Mapping[str, Tensor], rank: int = 0, world: int = 1) -> dict[str, Piece]:
    """What worker `rank` of `world` writes of tensors that it has whole, or has these rows of. Views, no copies."""
    pieces: dict[str, Piece] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            pieces.update(_own_rows(name, tensor, rank, world))
            continue
        if tensor.ndim == 0 or len(tensor) == 0:
            if rank == 0:
                pieces[name] = Piece(tensor)
            continue
        start, stop = row_range(len(tensor), rank, world)
        if start < stop:
            whole = stop - start == len(tensor)  # not sliced, which XLA would compile for every shape
            pieces[name] = Piece(tensor if whole else tensor[start:stop], start, len(tensor))
    return pieces


def _own_rows(name: str, tensor: DTensor, rank: int, world: int) -> dict[str, Piece]:
    start, stop = row_range(len(tensor), rank, world)
    if place(tensor) != (rank, world) or len(local(tensor)) != stop - start:
        has = "{} of {}".format(*place(tensor))
        raise ValueError(f"{name} must be split so that this worker has share {rank} of {world}, got share {has}")
    return {name: Piece(local(tensor), start, len(tensor))} if start < stop else {}


def write_pieces(path: Path, kind: str, pieces: Mapping[str, Piece]) -> FileEntry:
    """A new safetensors file of the pieces, written as a stream: no copy of them in memory. They are on the CPU."""
    written = write_file(path, _stream(pieces))
    first, last = (min(pieces), max(pieces)) if pieces else ("", "")
    return FileEntry(path.name, kind, written.num_bytes, written.sha256, first, last)


def read_pieces(paths: Sequence[Path], rank: int = 0, world: int = 1) -> dict[str, Piece]:
    """The rows of worker `rank` of `world`, joined from the files that hold them: none of a tensor with too few for all workers.

    Raises WeightsError naming what does not fit.
    """
    parts: dict[str, list[Piece]] = {}
    totals: dict[str, int | None] = {}
    for path in paths:
        try:
            for name, piece in _wanted(path, rank, world):
                if totals.setdefault(name, piece.rows) != piece.rows:
                    raise WeightsError(f"checkpoint: {path}: {name} has {piece.rows} rows, another file says {totals[name]}")
                parts.setdefault(name, []).append(piece)
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(f"checkpoint: {path} is not readable ({error})") from None
    joined = {name: _join(name, found, rank, world, paths) for name, found in parts.items()}
    return {name: piece for name, piece in joined.items() if piece is not None}


def _wanted(path: Path, rank: int, world: int) -> Iterator[tuple[str, Piece]]:
    """What of a file lies in the worker's rows; a piece without rows where nothing does."""
    with safe_open(path, "pt") as opened:
        known = dict(json.loads((opened.metadata() or {}).get(_ROWS, "{}")))
        for name in opened.keys():  # noqa: SIM118 - it is no mapping
            view = opened.get_slice(name)
            shape = view.get_shape()
            if not shape or shape[0] == 0:
                yield name, Piece(opened.get_tensor(name))
                continue
            first, rows = map(int, known.get(name, (0, shape[0])))
            start, stop = row_range(rows, rank, world)
            low, high = max(start, first), min(stop, first + shape[0])
            yield name, Piece(view[low - first : high - first] if low < high else view[0:0], low, rows)


def _join(name: str, found: Sequence[Piece], rank: int, world: int, paths: Sequence[Path]) -> Piece | None:
    rows = found[0].rows
    if rows is None:
        return found[0] if rank == 0 or world == 1 else None
    start, stop = row_range(rows, rank, world)
    pieces = sorted((p for p in found if len(p.tensor)), key=lambda p: p.start)
    at = start
    for piece in pieces:
        if piece.start != at:
            break
        at += len(piece.tensor)
    if at != stop or sum(len(p.tensor) for p in pieces) != stop - start:
        raise WeightsError(
            f"checkpoint: {paths[0].parent}: {name} must have rows {start} to {stop} once, got "
            f"{[(p.start, p.start + len(p.tensor)) for p in pieces]}; use an earlier checkpoint"
        )
    if not pieces:
        return Piece(found[0].tensor, start, rows)
    return Piece(pieces[0].tensor if len(pieces) == 1 else torch.cat([p.tensor for p in pieces]), start, rows)


def _stream(pieces: Mapping[str, Piece]) -> Iterator[bytes | memoryview]:
    # safetensors' own order: the widest numbers first, then by name, so that every tensor is aligned.
    ordered = sorted(pieces.items(), key=lambda item: (-item[1].tensor.element_size(), item[0]))
    header: dict[str, object] = {}
    split = {name: (p.start, p.rows) for name, p in sorted(pieces.items()) if not p.is_whole}
    if split:
        header["__metadata__"] = {_ROWS: json.dumps(split)}
    offset = 0
    for name, piece in ordered:
        end = offset + piece.tensor.numel() * piece.tensor.element_size()
        header[name] = {"dtype": _DTYPES[piece.tensor.dtype], "shape": list(piece.tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for _, piece in ordered:
        if piece.tensor.numel():
            yield piece.tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
