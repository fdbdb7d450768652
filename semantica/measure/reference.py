"""References on disk: statistics of a reference set with their root, under a name that says what they are of.

The name is a hash of the extractor's identity, the resize and the pictures, so a reference is made once and found by every later
evaluation that means the same. A file is there whole or not at all, holds its own SHA-256, and is made again when it is damaged.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from safetensors import SafetensorError
from safetensors.numpy import load, save

from semantica.data.durable import write_atomically
from semantica.data.location import Location
from semantica.errors import DataError
from semantica.measure.frechet import Array, FeatureStatistics, Reference

_log = logging.getLogger(__name__)
_FORMAT = 1
_ARRAYS = ("n", "sum", "outer", "root", "pivots")


def reference_key(extractor: Mapping[str, Any], resize: str, images: Iterable[str]) -> str:
    """64 hex digits that name a reference: another extractor, resize or picture gives others, another order of pictures does not.

    extractor: its identity (name, hash of the weights, ...). images: an id or hash of the content for every picture; one that
    counts twice stands there twice.
    """
    named = {"format": _FORMAT, "extractor": dict(extractor), "resize": resize, "images": sorted(images)}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def reference_path(folder: Location, key: str) -> Location:
    """Where the reference of this key lies in a folder of references."""
    return folder / f"{key}.safetensors"


def cached_reference(folder: Location, key: str, compute: Callable[[], FeatureStatistics]) -> Reference:
    """The reference of this key from the folder; when it is not there, or damaged, it is computed and kept there.

    Any number of processes may ask for one key at once: each writes a file of its own and moves it into place.
    """
    path = reference_path(folder, key)
    if path.exists():
        try:
            return read_reference(folder, key)
        except DataError as error:
            _log.warning("%s; it is computed again", error)
    reference = Reference.of(compute())
    write_reference(folder, key, reference)
    return reference


def write_reference(folder: Location, key: str, reference: Reference) -> None:
    """Put the reference into the folder under this key."""
    arrays = {**reference.statistics.to_arrays(), "root": reference.root, "pivots": reference.pivots}
    arrays = {name: np.asarray(arrays[name], order="C") for name in _ARRAYS}
    write_atomically(reference_path(folder, key), save({**arrays, "sha256": _digest(key, arrays)}))


def read_reference(folder: Location, key: str) -> Reference:
    """The reference that `write_reference` put there. Raises DataError when it is missing, damaged, or one of another key."""
    path = reference_path(folder, key)
    try:
        arrays = load(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"reference statistics: expected the file {path}, got none") from None
    except SafetensorError as error:
        raise DataError(f"reference statistics: {path} is damaged ({error})") from None
    missing = [name for name in (*_ARRAYS, "sha256") if name not in arrays]
    if missing:
        raise DataError(f"reference statistics: {path} is damaged (no {' and no '.join(missing)})")
    if not np.array_equal(_digest(key, arrays), arrays["sha256"]):
        raise DataError(f"reference statistics: {path} is damaged (its SHA-256 is not that of its content)")
    return Reference(statistics=FeatureStatistics.from_arrays(arrays), root=arrays["root"], pivots=arrays["pivots"])


def _digest(key: str, arrays: Mapping[str, Array]) -> UInt8[np.ndarray, " 32"]:
    digest = hashlib.sha256(key.encode())
    for name in _ARRAYS:
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return np.frombuffer(digest.digest(), np.uint8)
