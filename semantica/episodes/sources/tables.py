"""Parquet tables with one page per row: cutting a table into parts, and reading its rows a few at a time.

Used by OBELICS, OmniCorpus and `pictures`. A part is a run of whole row groups. Memory holds a batch of rows, not a row group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from semantica.data.location import Location
from semantica.episodes.pages import ImageRef, Part, ReadConfig
from semantica.episodes.quarantine import DamagedFile, Reason, utf8
from semantica.episodes.sources.files import DAMAGED, label_of, list_parts, location_of, open_part
from semantica.episodes.sources.remote import remote_image

MIN_CUT_BYTES = 8 << 20  # a smaller file is one part, and the driver does not read its footer
FOOTERS_AT_ONCE = 16  # footers are small requests, so over a network they are read in parallel
ROWS_PER_BATCH = 16  # rows may hold pictures

Columns = Mapping[str, tuple[Callable[[Any], bool], str]]  # name -> (check of the Arrow type, expected type in words)


def parquet_parts(root: Location, settings: ReadConfig, what: str) -> list[Part]:
    """Parts of the Parquet files under the root: the fewest row groups with `pages_per_part` rows, or a whole small file."""
    files = list_parts(root, (".parquet",), what)
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        cut = pool.map(lambda part: _cut(root, part, settings.pages_per_part), files)
        return [part for parts in cut for part in parts]


def _cut(root: Location, part: Part, rows: int) -> list[Part]:
    """The parts of one file. A file with an unreadable footer stays one part, which the worker reports as damaged."""
    if int(part.fingerprint) < MIN_CUT_BYTES:
        return [part]
    try:
        with location_of(root, part).open("rb") as stream:
            footer = pq.ParquetFile(stream).metadata
            sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, PermissionError):
            raise
        return [part]
    parts, start, num_rows = [], 0, 0
    for group, size in enumerate(sizes):
        num_rows += size
        if num_rows >= rows or group == len(sizes) - 1:
            parts.append(replace(part, start=start, stop=group + 1))
            start, num_rows = group + 1, 0
    return parts or [part]


def read_rows(root: Location, part: Part, columns: Columns) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(number of the row in its file, its values) for every row of a part. For a bad row, a text says why instead of the values.

    Raises DamagedFile when the file is not Parquet, ends too early, or has other columns.
    """
    with open_part(root, part) as stream:
        # With a buffer, a column chunk is not read whole: with pictures in it, it may have gigabytes.
        table = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
        _check(table.schema_arrow, columns, label_of(root, part))
        stop = part.stop or table.num_row_groups
        if stop > table.num_row_groups:
            raise DamagedFile(label_of(root, part), f"expected {stop} row groups, got {table.num_row_groups}")
        number = sum(table.metadata.row_group(group).num_rows for group in range(part.start))
        groups = list(range(part.start, stop))
        for batch in table.iter_batches(ROWS_PER_BATCH, row_groups=groups, columns=list(columns)):
            for row in range(batch.num_rows):
                yield number, _values(batch, row)
                number += 1


def _check(schema: Any, columns: Columns, name: str) -> None:
    for column, (fits, expected) in columns.items():
        if column not in schema.names:
            raise DamagedFile(name, f"expected the columns {', '.join(columns)}, got {', '.join(schema.names)}")
        if not fits(schema.field(column).type):
            raise DamagedFile(name, f"expected the column {column} to be {expected}, got {schema.field(column).type}")


def _values(batch: Any, row: int) -> dict[str, Any] | str:
    try:
        return {name: batch.column(name)[row].as_py() for name in batch.schema.names}
    except UnicodeDecodeError as error:
        return f"expected UTF-8 text, {error.reason} at byte {error.start}"


# --- the column `images` ---


def is_image_list(kind: Any) -> bool:
    """True for a list of URLs, of bytes, or of the struct {bytes, path} that Hugging Face's `datasets` writes for pictures."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    kind = kind.value_type
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_null)
    return any(fits(kind) for fits in plain)


def table_images(values: Sequence[Any], name: str, settings: ReadConfig) -> Iterator[ImageRef]:
    """The pictures in one cell of `images`. `name` is the prefix of names for pictures without a URL.

    None, or a struct of None, stands for a text, not for a picture.
    """
    for number, value in enumerate(values):
        data, url = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if isinstance(data, bytes):
            url = utf8(str(url)) if url else f"{name}/{number}"
            if len(data) <= settings.max_image_bytes:
                yield ImageRef(url, data=data)
            else:
                detail = f"expected at most {settings.max_image_bytes} bytes, got {len(data)}"
                yield ImageRef(url, problem=Reason.TOO_MANY_BYTES, detail=detail)
        elif data is not None or url is not None:
            yield remote_image(data or url or "")
