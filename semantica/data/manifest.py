"""What a stage left, for those who read it: the manifest of a dataset, and its shards.

A folder without a manifest is never read as data. Folders are `Location`s: a local path or an object store. `datasets.py` fills
them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from semantica.data.location import Location
from semantica.data.schemas import SCHEMA_VERSION
from semantica.data.shard_writer import FileEntry
from semantica.errors import DataError

MANIFEST = "manifest.json"
_MADE_BY = {
    "episodes": "ingest", "encodings": "encode", "scores": "pairs", "selection": "pairs", "checkpoint": "train",
    "samples": "generate", "evaluation": "evaluate", "drawn": "evaluate", "features": "evaluate",
}  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """What a dataset is: kind, the configuration that made it, the hashes of its inputs, counts, further facts, files."""

    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    counts: Mapping[str, int]
    facts: Mapping[str, Any]
    files: tuple[FileEntry, ...]
    schema_version: int = SCHEMA_VERSION

    @property
    def hash(self) -> str:
        """SHA-256 of the manifest's canonical JSON: two datasets with one hash hold the same bytes."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def shards(self, prefix: str = "") -> tuple[FileEntry, ...]:
        """The Parquet files in the sub-folder `prefix` ("" is the folder itself), in order."""
        return tuple(f for f in self.files if f.path.endswith(".parquet") and str(PurePosixPath(f.path).parent) == (prefix or "."))


def read_manifest(folder: Location, kind: str) -> Manifest:
    """The manifest of a finished dataset. Raises DataError when the folder is missing, unfinished, damaged or of another kind."""
    job = _MADE_BY.get(kind, kind)
    if not folder.is_dir():
        raise DataError(f"{kind}: no folder {folder}; run jobs.{job} first")
    path = folder / MANIFEST
    if not path.exists():
        raise DataError(f"{kind}: {folder} has no {MANIFEST}, so it is not finished; run jobs.{job} again to finish it")
    try:
        values = json.loads(path.read_text())
        values["files"] = tuple(map(FileEntry.from_dict, values["files"]))
        manifest = Manifest(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{kind}: {path} is damaged ({error}); delete {folder} and run jobs.{job} again") from None
    if manifest.kind != kind:
        raise DataError(f"{kind}: {folder} holds {manifest.kind}, expected {kind}")
    if manifest.schema_version != SCHEMA_VERSION:
        raise DataError(f"{kind}: {folder} has schema version {manifest.schema_version}, expected {SCHEMA_VERSION}; make it again")
    return manifest


def read_shard(folder: Location, entry: FileEntry, columns: Sequence[str] | None = None) -> pa.Table:
    """One Parquet file of a dataset. Raises DataError when it is missing, of another size, or not readable."""
    path = folder / entry.path
    try:
        size = path.stat().st_size
        if size != entry.num_bytes:
            raise DataError(f"{path}: expected {entry.num_bytes} bytes, got {size}; the file is damaged, make it again")
        with path.open("rb") as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
            return file.read(columns=list(columns) if columns else None)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not readable ({error}); make the dataset again") from None
