"""The values of one column of a Parquet row group, taken page by page where they stand, without the levels that say how they nest.

A token sequence has 200,000 numbers, and Arrow decodes two levels for each of them, which takes longer than all else that is done
to a picture. Where every value is there, as our writer writes them, the lengths of the lists are known and the levels say nothing.
In: the bytes of a column and what the footer says of it. Out: the values, each page's checksum verified; None where a
page is of a kind that this module does not know, and Arrow is to read it. The format: parquet.apache.org, "Data Pages".
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

_DATA_PAGE, _PLAIN = 0, 0
_CODECS = ("UNCOMPRESSED", "ZSTD", "SNAPPY", "GZIP")  # LZ4 is the name of two
# Fields of a PageHeader and its DataPageHeader in Parquet's Thrift.
_TYPE, _UNCOMPRESSED, _COMPRESSED, _CRC, _DATA, _NUM_VALUES, _ENCODING = 1, 2, 3, 4, 5, 1, 2


class _UnknownError(Exception):
    """A page, or a header, of a kind that is left to Arrow."""


def half_values(data: bytes, chunk: Any, num_values: int) -> Float[np.ndarray, " m"] | None:
    """The num_values float16 of a column chunk (pyarrow's ColumnChunkMetaData) with these bytes, or None: Arrow is to read it.

    Raises OSError when a checksum is wrong, as Arrow does.
    """
    if chunk.physical_type != "FIXED_LEN_BYTE_ARRAY" or chunk.has_dictionary_page or chunk.num_values != num_values:
        return None
    if chunk.compression not in _CODECS:
        return None
    values, done = np.empty(num_values, np.float16), 0
    try:
        for page in _pages(memoryview(data), chunk):
            values[done : done + len(page)] = page
            done += len(page)
    except (_UnknownError, LookupError, AttributeError, TypeError, RecursionError):  # all but the first: a header that is none
        return None
    return values if done == num_values else None


def _pages(data: memoryview, chunk: Any) -> Iterator[Float[np.ndarray, " k"]]:
    codec = None if chunk.compression == "UNCOMPRESSED" else pa.Codec(chunk.compression.lower())
    at = 0
    while at < len(data):
        header, at = _struct(data, at)
        if header.get(_TYPE) != _DATA_PAGE or header[_DATA].get(_ENCODING) != _PLAIN:
            raise _UnknownError
        if header[_COMPRESSED] <= 0 or not 0 < header[_UNCOMPRESSED] <= chunk.total_uncompressed_size:
            raise _UnknownError
        body = data[at : at + header[_COMPRESSED]]
        at += header[_COMPRESSED]
        if _CRC in header and zlib.crc32(body) != header[_CRC] % 2**32:
            raise OSError("CRC checksum verification failed")
        size, num_bytes = header[_UNCOMPRESSED], 2 * header[_DATA][_NUM_VALUES]
        page = body if codec is None else memoryview(codec.decompress(body, size))
        # Repetition levels, definition levels, values; before both kinds of levels stands how long they are. Anything else, and
        # also a value that is null, would leave another number of bytes for the values.
        start = 0
        for _ in range(2):
            start += 4 + int.from_bytes(page[start : start + 4], "little")
        if len(page) != size or size - start != num_bytes:
            raise _UnknownError
        yield np.frombuffer(page[start:], "<f2")


def _struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol, {field: integer or struct}, and where it ends."""
    found: dict[int, Any] = {}
    field = 0
    while (byte := data[at]) != 0:
        at += 1
        kind, field = byte & 15, field + (byte >> 4)
        if byte >> 4 == 0:
            raise _UnknownError
        if kind in (1, 2):
            found[field] = kind == 1
        elif kind in (4, 5, 6):
            value, at = _varint(data, at)
            found[field] = value >> 1 ^ -(value & 1)
        elif kind == 8:
            length, at = _varint(data, at)
            at += length
        elif kind == 12:
            found[field], at = _struct(data, at)
        else:
            raise _UnknownError
    return found, at + 1


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise _UnknownError
