"""One shard of a dataset: its entry in the manifest, and the writer that makes it row group by row group.

Comes in: tables of any length for the sub-folders of a dataset. Goes out: one Parquet file for each, in row groups of one size,
that appear under their names when the writer's owner (`datasets.StageOutput`) closes them. Memory is that of one row group.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from semantica.storage import Location, atomic_file, file_sha256


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
        """The entry from plain values, whose tuple JSON has made a list."""
        return cls(**{**values, "row_group_rows": tuple(values["row_group_rows"])})


class ShardWriter:
    """Writes one shard row by row: `write` appends to a sub-folder's file, a row group at a time; `stats` go into the receipt."""

    def __init__(self, folder: Location, name: str, rows_per_group: int, compression: str, files: ExitStack) -> None:
        self.folder, self.name, self.rows_per_group, self.compression = folder, name, rows_per_group, compression
        self.stats: Mapping[str, Any] = {}
        self._files = files
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._partials: dict[str, Path] = {}
        self._waiting: dict[str, list[pa.Table]] = {}
        self._group_rows: dict[str, list[int]] = {}

    def write(self, prefix: str, table: pa.Table) -> None:
        """Append rows to the file in sub-folder `prefix` ("" is the folder itself). The first, maybe empty, sets the schema."""
        if prefix not in self._writers:
            partial = self._files.enter_context(atomic_file(self.folder / self._path(prefix)))
            self._partials[prefix] = partial
            # No dictionaries: pictures, embeddings and names do not repeat, and reading float16 through one takes 3 times as long.
            self._writers[prefix] = pq.ParquetWriter(
                partial,
                table.schema,
                compression=self.compression,
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,  # a reader of one column finds damage without reading the others
            )
            self._waiting[prefix], self._group_rows[prefix] = [], []
        self._waiting[prefix].append(table)
        while sum(t.num_rows for t in self._waiting[prefix]) >= self.rows_per_group:
            rows = pa.concat_tables(self._waiting[prefix])
            self._write_group(prefix, rows[: self.rows_per_group])
            self._waiting[prefix] = [rows[self.rows_per_group :]]

    def close(self) -> list[FileEntry]:
        """The files, complete and under their temporary names."""
        entries = []
        for prefix, writer in self._writers.items():
            rest = pa.concat_tables(self._waiting[prefix])
            if rest.num_rows:
                self._write_group(prefix, rest)
            writer.close()
            partial = self._partials[prefix]
            entries.append(
                FileEntry(self._path(prefix), partial.stat().st_size, file_sha256(partial), tuple(self._group_rows[prefix]))
            )
        return entries

    def abandon(self) -> None:
        """Close what is open after an exception, so that nothing holds the temporary files."""
        for writer in self._writers.values():
            writer.close()

    def _path(self, prefix: str) -> str:
        return f"{prefix}/{self.name}.parquet" if prefix else f"{self.name}.parquet"

    def _write_group(self, prefix: str, rows: pa.Table) -> None:
        self._writers[prefix].write_table(rows, row_group_size=rows.num_rows)
        self._group_rows[prefix].append(rows.num_rows)
