"""One shard of a dataset: its entry in the manifest, and the writer that makes it row group by row group.

In: tables of any length for the sub-folders of a dataset. Out: one Parquet file per sub-folder, in row groups that end at a number
of rows or at 64 MiB, whichever comes first. The files appear under their names when `dataset.StageOutput`, which owns the writer,
closes it. Where a row group ends, and every byte of the file, depends on the rows alone, not on the tables they came in. Memory
holds one row group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from semantica.data.durable import atomic_file
from semantica.data.location import Location, file_sha256

MAX_GROUP_BYTES = 2**26  # a reader holds several groups, and Arrow reads no nested column of 2 GiB at once


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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FileEntry:
        """The entry from plain values, in which JSON has made the tuple a list."""
        return cls(**{**values, "row_group_rows": tuple(values["row_group_rows"])})


@dataclass
class _OpenFile:
    """The file of one sub-folder while it grows: the rows of the unfinished group, and the sizes of the groups written."""

    partial: Path
    parquet: pq.ParquetWriter
    waiting: list[pa.Table] = field(default_factory=list)
    num_rows: int = 0
    num_bytes: int = 0
    group_rows: list[int] = field(default_factory=list)


class ShardWriter:
    """Writes one shard row by row: `write` appends to a sub-folder's file, a row group at a time; `stats` go into the receipt."""

    def __init__(self, folder: Location, name: str, rows_per_group: int, files: ExitStack) -> None:
        self.folder, self.name, self.rows_per_group = folder, name, rows_per_group
        self.stats: Mapping[str, Any] = {}
        self._files = files
        self._open: dict[str, _OpenFile] = {}

    def write(self, prefix: str, table: pa.Table) -> None:
        """Append rows to the file in sub-folder `prefix` ("" is the folder itself). The first, maybe empty, sets the schema.

        A row group ends with the row that makes it rows_per_group rows or MAX_GROUP_BYTES.
        """
        file = self._file(prefix, table.schema)
        sizes = row_bytes(table)
        start = 0
        while start < table.num_rows:
            sums = file.num_bytes + np.cumsum(sizes[start : start + self.rows_per_group - file.num_rows])
            rows = min(len(sums), int(np.searchsorted(sums, MAX_GROUP_BYTES)) + 1)
            file.waiting.append(table.slice(start, rows))
            file.num_rows, file.num_bytes = file.num_rows + rows, int(sums[rows - 1])
            start += rows
            if file.num_rows >= self.rows_per_group or file.num_bytes >= MAX_GROUP_BYTES:
                self.end_group(prefix)

    def write_group(self, prefix: str, table: pa.Table) -> None:
        """Append rows as one row group, whatever their number and size: for a file that mirrors the row groups of another."""
        self.end_group(prefix)
        file = self._file(prefix, table.schema)
        file.waiting, file.num_rows = [table], table.num_rows
        self.end_group(prefix)

    def end_group(self, prefix: str) -> None:
        """End the current row group if it has a row, so that the next row begins another one."""
        file = self._open.get(prefix)
        if file is None or not file.num_rows:
            return
        rows = pa.concat_tables(file.waiting).combine_chunks()  # where Parquet's pages end depends on the chunks
        file.waiting = []
        file.parquet.write_table(rows, row_group_size=rows.num_rows)
        file.group_rows.append(rows.num_rows)
        file.num_rows = file.num_bytes = 0

    def close(self) -> list[FileEntry]:
        """Complete the files, still under their temporary names, and return their entries."""
        entries = []
        for prefix, file in self._open.items():
            self.end_group(prefix)
            file.parquet.close()
            size, sha256 = file.partial.stat().st_size, file_sha256(file.partial)
            entries.append(FileEntry(self._path(prefix), size, sha256, tuple(file.group_rows)))
        return entries

    def abandon(self) -> None:
        """Close the open files after an exception, so that the temporary files can be deleted."""
        for file in self._open.values():
            file.parquet.close()

    def _path(self, prefix: str) -> str:
        return f"{prefix}/{self.name}.parquet" if prefix else f"{self.name}.parquet"

    def _file(self, prefix: str, schema: pa.Schema) -> _OpenFile:
        if prefix not in self._open:
            partial = self._files.enter_context(atomic_file(self.folder / self._path(prefix)))
            # No dictionaries: pictures, embeddings and names do not repeat, and reading float16 through one takes 3 times as long.
            parquet = pq.ParquetWriter(
                partial,
                schema,
                compression={leaf: "zstd" if shrinks else "none" for leaf, shrinks in leaves(schema)},
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,  # a reader of one column finds damage without reading the others
            )
            self._open[prefix] = _OpenFile(partial, parquet)
        return self._open[prefix]


def leaves(schema: pa.Schema) -> Iterator[tuple[str, bool]]:
    """The columns as Parquet names them, nested ones one by one, and whether a compressor makes them smaller.

    Pictures are compressed already. Of float16 zstd takes 7% away, and for that doubles the time of reading it.
    """
    for column in schema:
        yield from _leaves(column.name, column.type)


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, bool]]:
    if pa.types.is_struct(kind):
        for member in kind:
            yield from _leaves(f"{path}.{member.name}", member.type)
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    else:
        binary = pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind)
        yield path, not (binary or pa.types.is_floating(kind))


def row_bytes(table: pa.Table) -> Int[np.ndarray, " rows"]:
    """The bytes of the values of each row, nested ones included, whatever the layout in which Arrow holds them.

    Not `table.nbytes`, which also counts bitmaps and offsets; these differ between one table and the same rows in two tables.
    """
    sizes = np.zeros(table.num_rows, np.int64)
    for column in table.columns:
        sizes += np.concatenate([np.zeros(0, np.int64), *map(_value_bytes, column.chunks)])
    return sizes


def _value_bytes(array: pa.Array) -> Int[np.ndarray, " rows"]:
    kind = array.type
    if pa.types.is_struct(kind):
        fields = (_value_bytes(array.field(index)) for index in range(kind.num_fields))
        return sum(fields, np.zeros(len(array), np.int64))
    if pa.types.is_fixed_size_list(kind) and pa.types.is_primitive(kind.value_type):  # a token sequence has 200,000 of them
        return np.full(len(array), -(-kind.list_size * kind.value_type.bit_width // 8), np.int64)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        ends = np.cumsum(_lengths(pc.list_value_length(array)))
        sums = np.concatenate([[0], np.cumsum(_value_bytes(array.flatten()))])
        sizes: np.ndarray = np.diff(sums[np.concatenate([[0], ends])])
        return sizes
    if pa.types.is_primitive(kind):
        return np.full(len(array), -(-kind.bit_width // 8), np.int64)
    return _lengths(pc.binary_length(array))


def _lengths(lengths: pa.Array) -> Int[np.ndarray, " rows"]:
    plain: np.ndarray = lengths.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return plain
