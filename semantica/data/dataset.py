"""A dataset: a folder of Parquet shards with a manifest, which is there whole or not at all. How stages write and read one.

`StageOutput` is the folder that a stage fills. Each shard appears whole, then its receipt (`_shards/NAME.json`). The manifest, with
the size and SHA-256 of every file, comes last: a folder without one is never read as data. A stage that is started again makes the
shards without a receipt and repeats none. One process fills a folder at a time (`lease.py`). Folders are `Location`s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from semantica.config.identity import differences, free_fields, plain
from semantica.data import lease
from semantica.data.durable import write_atomically
from semantica.data.location import Location, explained, file_sha256, is_local, is_storage_error, remove_tree
from semantica.data.schemas import SCHEMA_VERSION
from semantica.data.shard_writer import FileEntry, ShardWriter
from semantica.errors import DataError

__all__ = ["MANIFEST", "TIMING", "FileEntry", "Manifest", "RowGroups", "ShardWriter", "StageOutput", "read_manifest", "read_shard"]

T = TypeVar("T")

MANIFEST, TIMING = "manifest.json", "_timing.json"
_PLAN, _RECEIPTS = "_plan.json", "_shards"
# One read of a local file fills a buffer of this size, which the next read reuses. A store delivers all pages at once.
_BUFFER_BYTES = 2**20
_MADE_BY = {
    "episodes": "ingest", "encodings": "encode", "scores": "pairs", "selection": "pairs", "checkpoint": "train",
    "samples": "generate", "evaluation": "evaluate", "drawn": "evaluate", "features": "evaluate", "edits": "apply",
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
        raise DataError(f"{kind}: no folder {folder}; run semantica {job} first")
    path = folder / MANIFEST
    if not path.exists():
        raise DataError(f"{kind}: {folder} has no {MANIFEST}, so it is not finished; run semantica {job} again to finish it")
    try:
        values = json.loads(path.read_text())
        values["files"] = tuple(map(FileEntry.from_dict, values["files"]))
        manifest = Manifest(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{kind}: {path} is damaged ({error}); delete {folder} and run semantica {job} again") from None
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


class RowGroups:
    """`groups.read(entry, group)`: one row group of a file in a folder. stage: who reads; made_by: the job that wrote the folder.

    The size of a file is compared with the manifest when it is first opened, and each page with its checksum when it is read, so
    damage is an error and never another value.
    """

    def __init__(self, folder: Location, columns: Sequence[str], *, stage: str, made_by: str) -> None:
        self.folder, self.columns, self.stage, self.made_by = folder, list(columns), stage, made_by
        self._sized: set[str] = set()

    def read(self, entry: FileEntry, group: int) -> pa.Table:
        """The rows of a row group. Raises DataError, with the file's name, when it is missing or not what was written."""
        path = self.folder / entry.path
        try:
            self._check_size(path, entry)
            buffer = _BUFFER_BYTES if is_local(path) else 0
            with path.open("rb") as stream, pq.ParquetFile(stream, buffer_size=buffer, page_checksum_verification=True) as file:
                table = file.read_row_group(group, columns=self.columns)
        except (DataError, pa.ArrowMemoryError, pa.ArrowNotImplementedError):  # the last two are limits of machine and Arrow
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._unreadable(path, " ".join(str(error).split())) from None
        if table.num_rows != entry.row_group_rows[group] or set(table.column_names) != set(self.columns):
            raise self._unreadable(path, f"row group {group} does not hold the rows and columns that were written")
        return table

    def _check_size(self, path: Location, entry: FileEntry) -> None:
        if entry.path not in self._sized:
            size = path.stat().st_size
            if size != entry.num_bytes:
                raise self._unreadable(path, f"expected {entry.num_bytes} bytes, got {size}")
            self._sized.add(entry.path)

    def _unreadable(self, path: Location, what: str) -> DataError:
        return DataError(
            f"{self.stage}: {path} is not readable ({what}); delete {self.folder} and run semantica {self.made_by} again"
        )


@dataclass(frozen=True)
class StageOutput:
    """The folder that one run of a stage fills: the driver opens it, workers write shards, the driver finishes it. It pickles.

    config: a `@config` instance, or a mapping of plain values and such instances. further: what is recorded beside its fields. Both
    are recorded whole; a later run is refused the folder when it differs in what decides the result (`identity.py`). at_least:
    fields of config, by their dotted names, that a later run may set to any number from this one on, which is done already.
    """

    folder: Location
    kind: str
    config: Any
    inputs: Mapping[str, str] = field(default_factory=dict)
    further: Mapping[str, Any] = field(default_factory=dict)
    at_least: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Location, manifest: Manifest) -> StageOutput:
        """The finished output in a folder, for its receipts: with the settings of its plan, by which they are named."""
        plan = folder / _PLAN
        config = json.loads(plan.read_text())["config"] if plan.exists() else manifest.config
        return cls(folder, manifest.kind, config, manifest.inputs)

    @property
    def record(self) -> dict[str, Any]:
        """The configuration as plain values, as the manifest has it."""
        return {**plain(self.config), **plain(self.further)}

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block in which no other process may fill this folder. Raises DataError when another process fills it."""
        if not self.folder.name:
            raise DataError(f"{self.kind}: {self.folder} is the root of a bucket; name a folder in it")
        with ExitStack() as stack:
            try:
                stack.enter_context(lease.held(self.folder, self.kind))
            except Exception as error:
                if is_storage_error(error):
                    raise self._cannot_write(error) from None
                raise
            yield

    def finished(self) -> Manifest | None:
        """The manifest if this same work is done, else None. Changes nothing on disk."""
        try:
            if not self._plan_file.exists() or self._difference():
                return None
            return self._manifest()
        except Exception as error:
            if is_storage_error(error):
                raise DataError(f"{self.kind}: cannot look at {self.folder} ({explained(error)})") from None
            raise

    def open(self, *, fresh: bool = False) -> Manifest | None:
        """`check`, and `begin` when there is work to do."""
        manifest = self.check(fresh=fresh)
        if manifest is None:
            self.begin(fresh=fresh)
        return manifest

    def check(self, *, fresh: bool = False) -> Manifest | None:
        """The manifest when the same work is already done, None when there is work to do. Touches nothing.

        Raises DataError when the folder holds something else, or, unless `fresh`, the output of another configuration or of other
        inputs.
        """
        with self._writable():
            if not self._plan_file.exists():
                if self.folder.exists() and any(not p.name.endswith(".partial") for p in self.folder.iterdir()):
                    raise DataError(
                        f"{self.kind}: {self.folder} is not empty and was not made by this stage; choose another folder"
                    )
                return None
            if difference := self._difference():
                if not fresh:
                    raise DataError(f"{self.kind}: {self.folder} {difference}")
                return None
            return self._manifest()

    def replaces(self) -> bool:
        """True when the folder holds an output that `begin` takes away: a finished one, or one of another configuration."""
        with self._writable():
            return self._plan_file.exists() and ((self.folder / MANIFEST).exists() or bool(self._difference()))

    def is_begun(self) -> bool:
        """True when the folder holds this same work, or less of it, whether it is finished or not."""
        with self._writable():
            return self._plan_file.exists() and not self._difference()

    def begun_with(self) -> dict[str, Any]:
        """The record with which the work in the folder began."""
        record: dict[str, Any] = json.loads(self._plan_file.read_text())["config"]
        return record

    def changes(self) -> dict[str, Any]:
        """The settings, by their dotted names, whose values are others than those that the work began with."""
        return {difference.path: difference.new for difference in differences(self.begun_with(), self.record)}

    def begin(self, *, fresh: bool = False) -> None:
        """Make the folder ready for the work, after `check`: a moment later it may hold nothing else any more.

        With `fresh`, the output of another configuration or other inputs is deleted, and only such a one.
        """
        with self._writable():
            if fresh and self._plan_file.exists() and self._difference():
                self._clear()
            (self.folder / MANIFEST).unlink(missing_ok=True)  # of less work than this
            if not self._plan_file.exists():
                write_atomically(self._plan_file, json.dumps(self._plan, indent=1).encode())

    def reopen(self) -> None:
        """Let a finished output of this same work take more shards; it counts as unfinished until `finish`."""
        if self.finished() is not None:
            (self.folder / MANIFEST).unlink(missing_ok=True)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """A block whose storage errors are one sentence about this folder."""
        try:
            yield
        except Exception as error:
            if is_storage_error(error):
                raise self._cannot_write(error) from None
            raise

    def _cannot_write(self, error: Exception) -> DataError:
        return DataError(f"{self.kind}: cannot write to {self.folder} ({explained(error)}); choose another folder")

    def _manifest(self) -> Manifest | None:
        """The manifest of the folder, when it has one and no more work is wanted than that."""
        if not (self.folder / MANIFEST).exists():
            return None
        manifest = read_manifest(self.folder, self.kind)
        return manifest if all(_value(manifest.config, name) == _value(self.record, name) for name in self.at_least) else None

    def _clear(self) -> None:
        """Delete the output of another configuration, in such an order that a kill halfway leaves an unfinished output."""
        (self.folder / MANIFEST).unlink(missing_ok=True)
        if (self.folder / _RECEIPTS).exists():
            remove_tree(self.folder / _RECEIPTS)
        for path in cast("list[Location]", list(self.folder.iterdir())):
            if path.name == _PLAN:
                continue
            if path.is_dir():
                remove_tree(path)
            else:
                path.unlink(missing_ok=True)
        (self.folder / _PLAN).unlink()

    @property
    def _plan_file(self) -> Location:
        return self.folder / _PLAN

    @property
    def _plan(self) -> dict[str, Any]:
        """What is written down when the work begins. free: the names of the free fields, for versions that do not know them."""
        record = {"kind": self.kind, "config": self.record, "inputs": self.inputs, "schema_version": SCHEMA_VERSION}
        plan: dict[str, Any] = json.loads(json.dumps(record | {"free": free_fields(self.config)}))
        return plan

    def _difference(self) -> str:
        """How the plan in the folder differs from this work, and what to do; "" when it is the same."""
        try:
            earlier = dict(json.loads(self._plan_file.read_text()))
        except (ValueError, TypeError) as error:
            return f"has a damaged plan, {_PLAN} ({error}); choose another --out, or give --fresh to replace it"
        known_free, config = earlier.pop("free", ()), earlier.pop("config", {})
        settings = {name: value for name, value in config.items() if name not in self.further}
        other = [d for d in differences(settings, self.config, known_free=known_free) if d.path not in self.at_least]
        other += differences({name: config.get(name) for name in self.further}, self.further)
        done = {name: number for name, number in self.at_least.items() if _value(self.record, name) < number}
        fields = [
            *map(str, other),
            *(f"{name}: {number} are done, now {_value(self.record, name)}" for name, number in done.items()),
        ]
        fields += map(str, differences(earlier, {name: self._plan[name] for name in ("kind", "inputs", "schema_version")}))
        if not fields:
            return ""
        back = " set the old values again," if other and not any(d.is_unknown for d in other) else ""
        longer = f" ask for more {', '.join(done)}," if done else ""
        return (
            f"was made with another configuration ({'; '.join(fields)});{back}{longer} choose another --out, or give --fresh to "
            "replace it"
        )

    @cached_property
    def _suffix(self) -> str:
        """How receipts of this work end: those of another configuration, by a worker that outlived its driver, end otherwise.

        It is that of the plan with which the work began, whatever free fields have changed since.
        """
        same = self._plan_file.exists() and not self._difference()
        plan = json.loads(self._plan_file.read_text()) if same else self._plan
        return f".{hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12]}.json"

    def _receipt(self, name: str) -> Location:
        return self.folder / _RECEIPTS / f"{name}{self._suffix}"

    def has_shard(self, name: str) -> bool:
        """Whether the shard was written whole."""
        return self._receipt(name).exists()

    def shard_names(self) -> frozenset[str]:
        """The shards that were written whole, from one listing; `has_shard` makes a request per shard."""
        return frozenset(path.name.removesuffix(self._suffix) for path in self._receipt_files())

    @contextmanager
    def shard_writer(self, name: str, rows_per_group: int) -> Iterator[ShardWriter]:
        """A writer of the shard. At the end of the block its files appear whole, then its receipt; after an exception none."""
        with ExitStack() as files:
            writer = ShardWriter(self.folder, name, rows_per_group, files)
            try:
                yield writer
            except BaseException:
                writer.abandon()
                raise
            entries = writer.close()
            self._check_ours(name)
        receipt = {"files": [asdict(entry) for entry in entries], "stats": dict(writer.stats)}
        write_atomically(self._receipt(name), json.dumps(receipt).encode())

    def _check_ours(self, name: str) -> None:
        """Raise DataError when the folder was given to another configuration since: a worker must not write into its data."""
        if not self._plan_file.exists() or self._difference():
            raise DataError(f"{self.kind}: {self.folder} was replaced by another run while {name} was made; nothing of it is kept")

    def write_shard(self, name: str, tables: Mapping[str, pa.Table], stats: Mapping[str, Any], rows_per_group: int = 256) -> None:
        """Write {sub-folder ("" for the folder itself): table} as NAME.parquet each, then the receipt with `stats` (plain data)."""
        with self.shard_writer(name, rows_per_group) as writer:
            for prefix, table in tables.items():
                writer.write(prefix, table)
            writer.stats = stats

    def receipts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(shard name, stats) of every shard written so far, sorted by name."""
        for path, stats in self._of_receipts(lambda path: _read_json(path)["stats"]):
            yield path.name.removesuffix(self._suffix), stats

    def _of_receipts(self, function: Callable[[Location], T]) -> Iterator[tuple[Location, T]]:
        with ThreadPoolExecutor(16) as threads:  # requests, on an object store
            files = self._receipt_files()
            yield from zip(files, threads.map(function, files), strict=True)

    def _receipt_files(self) -> list[Location]:
        folder = self.folder / _RECEIPTS
        return sorted(folder.glob(f"*{self._suffix}"), key=lambda path: path.name) if folder.exists() else []

    def finish(self, counts: Mapping[str, int], facts: Mapping[str, Any], extra_files: Sequence[str] = ()) -> Manifest:
        """Write the manifest of all shards and `extra_files` (paths inside the folder), which completes the dataset.

        Raises DataError when a file is not what its receipt says, or when another process took the output over.
        """
        lease.check(self.folder, self.kind)
        entries = self.files()
        for relative in extra_files:
            path = self.folder / relative
            entries.append(FileEntry(relative, path.stat().st_size, file_sha256(path)))
        manifest = Manifest(
            self.kind, self.record, dict(self.inputs), dict(counts), dict(facts), tuple(sorted(entries, key=lambda e: e.path))
        )
        if isinstance(self.folder, Path):  # the temporary files of killed workers
            for partial in list(self.folder.rglob(".*.partial")):
                remove_tree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        write_atomically(self.folder / MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
        return read_manifest(self.folder, self.kind)

    def files(self) -> list[FileEntry]:
        """The files of every shard written so far. Raises DataError when one is not what its receipt says."""
        return [entry for _, entries in self._of_receipts(self._entries) for entry in entries]

    def _entries(self, receipt: Location) -> list[FileEntry]:
        """The files of a receipt. Raises DataError when one is missing or has another size."""
        entries = [FileEntry.from_dict(values) for values in _read_json(receipt)["files"]]
        for entry in entries:
            path = self.folder / entry.path
            if not _has_size(path, entry.num_bytes):
                raise DataError(f"{self.kind}: {path} is not what its receipt {receipt} says; delete both, run again")
        return entries


def _read_json(path: Location) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def _has_size(path: Location, num_bytes: int) -> bool:
    try:
        return bool(path.stat().st_size == num_bytes)
    except FileNotFoundError:
        return False


def _value(values: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name."""
    for part in name.split("."):
        values = values[part]
    return values
