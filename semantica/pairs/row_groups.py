"""One row group of a dataset's file, checked: what the loader and the examples open for the pictures they show.

In: the manifest's entry of a file and the index of a row group. Out: its rows, some columns of them. A file's size is compared with
the manifest's when it is first opened, and every page that is read with its checksum, so damage is an error, never other numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from semantica.data.dataset import FileEntry
from semantica.data.location import Location, is_local
from semantica.errors import DataError

# Of one read of a local file: a group's pages then pass through memory that is used again. Of a store, all pages come at once.
_BUFFER_BYTES = 2**20


class RowGroupReader:
    """`reader.read(entry, group)`: row groups of the files of one folder. `stage` reads what jobs.`made_by` wrote."""

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
        return DataError(f"{self.stage}: {path} is not readable ({what}); delete {self.folder} and run jobs.{self.made_by} again")
