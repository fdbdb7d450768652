"""A stage's output: a folder of Parquet shards with a manifest, shown whole or not at all.

`StageOutput` is what a stage fills: each shard is written to a temporary name and renamed, then its receipt (`_shards/NAME.json`)
the same way; the manifest, with size and SHA-256 of every file, is renamed into place last. A folder without a manifest is never
read as data, and running a stage again finishes the shards without a receipt and repeats nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from semantica.errors import DataError
from semantica.schemas import SCHEMA_VERSION

MANIFEST = "manifest.json"
TIMING = "_timing.json"
_PLAN = "_plan.json"
_RECEIPTS = "_shards"
_MADE_BY = {
    "episodes": "ingest", "encodings": "encode", "scores": "pairs", "selection": "pairs", "checkpoint": "train",
    "samples": "generate", "evaluation": "evaluate",
}  # fmt: skip


@dataclass(frozen=True)
class FileEntry:
    """One file of a dataset: its path inside the folder, size, SHA-256 and, for Parquet, rows of each row group."""

    path: str
    num_bytes: int
    sha256: str
    row_group_rows: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        return sum(self.row_group_rows)


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
        return tuple(f for f in self.files if f.path.endswith(".parquet") and str(Path(f.path).parent) == (prefix or "."))


def read_manifest(folder: Path, kind: str) -> Manifest:
    """The manifest of a finished dataset. Raises DataError when the folder is missing, unfinished, damaged or of another kind."""
    job = {"episodes": "ingest", "encodings": "encode", "scores": "pairs", "selection": "pairs", "samples": "generate"}.get(
        kind, kind
    )
    if not folder.is_dir():
        raise DataError(f"{kind}: no folder {folder}; run jobs.{job} first")
    path = folder / MANIFEST
    if not path.exists():
        raise DataError(f"{kind}: {folder} has no {MANIFEST}, so it is not finished; run jobs.{job} again to finish it")
    try:
        values = json.loads(path.read_text())
        values["files"] = tuple(FileEntry(**{**f, "row_group_rows": tuple(f["row_group_rows"])}) for f in values["files"])
        manifest = Manifest(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{kind}: {path} is damaged ({error}); delete {folder} and run jobs.{job} again") from None
    if manifest.kind != kind:
        raise DataError(f"{kind}: {folder} holds {manifest.kind}, expected {kind}")
    if manifest.schema_version != SCHEMA_VERSION:
        raise DataError(f"{kind}: {folder} has schema version {manifest.schema_version}, expected {SCHEMA_VERSION}; make it again")
    return manifest


def read_shard(folder: Path, entry: FileEntry, columns: Sequence[str] | None = None) -> pa.Table:
    """One Parquet file of a dataset. Raises DataError when it is missing, of another size, or not readable."""
    path = folder / entry.path
    try:
        if path.stat().st_size != entry.num_bytes:
            raise DataError(
                f"{path}: expected {entry.num_bytes} bytes, got {path.stat().st_size}; the file is damaged, make it again"
            )
        with pq.ParquetFile(path) as file:
            return file.read(columns=list(columns) if columns else None)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not readable ({error}); make the dataset again") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # still there only when something above failed


@dataclass(frozen=True)
class StageOutput:
    """The folder that one run of a stage fills. Picklable: the driver opens it, workers write shards, the driver finishes it."""

    folder: Path
    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)

    def open(self, *, fresh: bool = False) -> Manifest | None:
        """Make the folder ready. Returns the manifest when the same work is already done, None when there is work to do.

        Raises DataError when the folder holds the output of another configuration or other inputs; `fresh` deletes such an output,
        and only such a one, instead.
        """
        try:
            return self._open(fresh)
        except OSError as error:
            raise DataError(
                f"{self.kind}: cannot write to {self.folder} ({error.strerror or error}); choose another folder"
            ) from None

    def _open(self, fresh: bool) -> Manifest | None:
        plan = {"kind": self.kind, "config": self.config, "inputs": self.inputs, "schema_version": SCHEMA_VERSION}
        plan = json.loads(json.dumps(plan))
        path = self.folder / _PLAN
        difference = self._difference(path, plan) if path.exists() else ""
        if difference and fresh:
            shutil.rmtree(self.folder)
        elif difference:
            raise DataError(f"{self.kind}: {self.folder} {difference}; pass --fresh to replace it, or another output folder")
        if path.exists():
            pass
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise DataError(f"{self.kind}: {self.folder} is not empty and was not made by this stage; choose another folder")
        else:
            write_atomically(path, json.dumps(plan, indent=1).encode())
        if (self.folder / MANIFEST).exists():
            return read_manifest(self.folder, self.kind)
        return None

    def _difference(self, path: Path, plan: Mapping[str, Any]) -> str:
        try:
            earlier = json.loads(path.read_text())
        except ValueError as error:
            return f"has a damaged plan, {path.name} ({error})"
        found = _first_difference(earlier, plan)
        return f"was made with another configuration ({found})" if found else ""

    def has_shard(self, name: str) -> bool:
        """True when the shard was written whole."""
        return (self.folder / _RECEIPTS / f"{name}.json").exists()

    def write_shard(self, name: str, tables: Mapping[str, pa.Table], stats: Mapping[str, Any], rows_per_group: int = 256) -> None:
        """Write {sub-folder ("" for the folder itself): table} as NAME.parquet each, then the receipt with `stats` (plain data)."""
        files = []
        for prefix, table in tables.items():
            path = self.folder / prefix / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            pq.write_table(table, partial, row_group_size=rows_per_group, compression="zstd", write_statistics=False)
            metadata = pq.read_metadata(partial)
            rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
            relative = str(path.relative_to(self.folder))
            files.append(asdict(FileEntry(relative, partial.stat().st_size, file_sha256(partial), rows)))
            with partial.open("rb") as stream:  # on disk before its receipt can be
                os.fsync(stream.fileno())
            partial.replace(path)
        receipt = {"files": files, "stats": dict(stats)}
        write_atomically(self.folder / _RECEIPTS / f"{name}.json", json.dumps(receipt).encode())

    def receipts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(shard name, stats) of every shard written so far, in order of name."""
        for path in sorted((self.folder / _RECEIPTS).glob("*.json")):
            yield path.stem, json.loads(path.read_text())["stats"]

    def finish(self, counts: Mapping[str, int], facts: Mapping[str, Any], extra_files: Sequence[str] = ()) -> Manifest:
        """Write the manifest over all shards and `extra_files` (paths inside the folder); the dataset is whole from here on."""
        entries = []
        for path in sorted((self.folder / _RECEIPTS).glob("*.json")):
            for values in json.loads(path.read_text())["files"]:
                entry = FileEntry(**{**values, "row_group_rows": tuple(values["row_group_rows"])})
                if (self.folder / entry.path).stat().st_size != entry.num_bytes:
                    raise DataError(
                        f"{self.kind}: {self.folder / entry.path} is not what its receipt {path} says; delete both, run again"
                    )
                entries.append(entry)
        for relative in extra_files:
            path = self.folder / relative
            entries.append(FileEntry(relative, path.stat().st_size, file_sha256(path)))
        manifest = Manifest(
            self.kind, dict(self.config), dict(self.inputs), dict(counts), dict(facts), tuple(sorted(entries, key=lambda e: e.path))
        )
        write_atomically(self.folder / MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
        return read_manifest(self.folder, self.kind)


def _first_difference(old: Any, new: Any, path: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(n for n in new if n not in old)]:
            found = _first_difference(old.get(name), new.get(name), f"{path}.{name}" if path else str(name))
            if found:
                return found
        return ""
    return "" if old == new else f"{path}: was {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
