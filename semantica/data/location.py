"""Where data lies: a local folder, s3://, gs:// or abfs://, all with the interface of `pathlib` (universal_pathlib over fsspec).

Everything that reads or writes a dataset takes a `Location` and does not ask which kind it is. The differences between a disk and
an object store are in this file and, for writing, in `durable.py`. The commands turn what a user typed into a `Location`, once.
Credentials and endpoints come from the environment, as the clouds' own tools read them (AWS_PROFILE, AWS_ENDPOINT_URL, ...).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from pathlib import Path
from typing import TypeAlias, cast

from upath import UPath

from semantica.errors import ConfigError

Location: TypeAlias = Path | UPath
Where: TypeAlias = str | Path | UPath  # how a user may name a location

_REMOTE = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs", "memory": ""}
_URI = re.compile(r"\A([A-Za-z][A-Za-z0-9+.-]*)://")
# Listings are not cached: another process may have written since.
_CLIENTS = frozenset({"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "azure", "s3fs"})
_UNCACHED = frozenset({"s3", "gs", "gcs"})


def location(where: Where) -> Location:
    """The absolute location that a user named by a path or a URI.

    Raises ConfigError for an unknown scheme, and when the library for a known one is not installed.
    """
    if isinstance(where, Path):
        return where.absolute()
    if isinstance(where, UPath):
        return where
    if not where:
        raise ConfigError("expected a path, s3://BUCKET/... or gs://BUCKET/..., got an empty text")
    found = _URI.match(where)
    if not found:
        return Path(where).expanduser().absolute()
    scheme = found[1].lower()
    if scheme == "file":
        return Path(where[len("file://") :]).absolute()
    if scheme not in _REMOTE:
        raise ConfigError(f"{where}: expected a path, s3://BUCKET/..., gs://BUCKET/... or abfs://..., got {scheme}://")
    try:
        place = UPath(where, use_listings_cache=False) if scheme in _UNCACHED else UPath(where)
        place.fs  # noqa: B018 - imports the library, which UPath does at first use
    except ImportError:
        raise ConfigError(f"{where}: {scheme}:// needs the package {_REMOTE[scheme]}; pip install {_REMOTE[scheme]}") from None
    return place


def is_local(where: Location) -> bool:
    """Whether this is a path of this machine, mounted disks included."""
    return isinstance(where, Path)


def uri(where: Location) -> str:
    """The text from which `location` makes the same location on every machine that reaches it."""
    return str(where)


def relative(where: Location, start: Location) -> str:
    """The path from the folder `start` to `where` if both lie on one disk or in one bucket, else the URI of `where`.

    Links are resolved, since ".." of a link is the parent of its target.
    """
    if isinstance(where, Path) and isinstance(start, Path):
        return os.path.relpath(where.resolve(), start.resolve())
    if isinstance(where, UPath) and isinstance(start, UPath) and where.protocol == start.protocol and where.anchor == start.anchor:
        return os.path.relpath(where.path, start.path)
    return uri(where)


def follow(path: str, start: Location) -> Location:
    """The inverse of `relative`: the location at `path` from the folder `start`."""
    if _URI.match(path) or os.path.isabs(path):
        return location(path)
    if isinstance(start, Path):
        return (start.resolve() / path).resolve()
    target = os.path.normpath(os.path.join(start.path, path))
    return cast(Location, UPath(f"{start.protocol}://{target.lstrip('/')}", **start.storage_options))


def file_sha256(path: Location) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(cast(io.BufferedReader, stream), "sha256").hexdigest()


def read_range(path: Location, offset: int, num_bytes: int) -> bytes:
    """Up to num_bytes of a file from the offset, by one request if it is remote."""
    if not isinstance(path, Path):
        try:
            data: bytes = path.fs.cat_file(path.path, start=offset, end=offset + num_bytes)
        except Exception:
            if path.stat().st_size <= offset:  # stores refuse a range beyond the end, also of an empty file
                return b""
            raise
        return data
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(num_bytes)


def is_storage_error(error: BaseException) -> bool:
    """Whether a disk or an object store raised this: an OSError, or an error of a cloud's library, which is no OSError."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _CLIENTS


def explained(error: BaseException) -> str:
    """A storage error as part of one sentence."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())[:300]


def remove_tree(folder: Location) -> None:
    """Delete a folder with everything in it."""
    if isinstance(folder, Path):
        shutil.rmtree(folder)
    else:
        folder.fs.rm(folder.path, recursive=True)
