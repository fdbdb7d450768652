"""References on disk: the statistics of a reference set and their root, under a name that identifies the set.

The name is a hash of the extractor's identity, the resize and the pictures. So a reference is computed once, and every later
evaluation with the same set finds it. A file is written atomically, holds its own SHA-256, and is computed again when damaged.
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
    """64 hex digits that name a reference. They depend on extractor, resize and pictures, but not on the order of the pictures.

    extractor: its identity (name, hash of the weights, ...). images: one id or content hash per picture; a picture that counts
    twice is listed twice.
    """
    named = {"format": _FORMAT, "extractor": dict(extractor), "resize": resize, "images": sorted(images)}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def reference_path(folder: Location, key: str) -> Location:
    """The file of a key in a folder of references."""
    return folder / f"{key}.safetensors"


def cached_reference(folder: Location, key: str, compute: Callable[[], FeatureStatistics]) -> Reference:
    """Read the reference of this key from the folder; when it is missing or damaged, compute it and write it there.

    Several processes may do so for one key at once: each writes its own file and moves it into place.
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
    """Write the reference into the folder under this key."""
    arrays = {**reference.statistics.to_arrays(), "root": reference.root, "pivots": reference.pivots}
    arrays = {name: np.asarray(arrays[name], order="C") for name in _ARRAYS}
    write_atomically(reference_path(folder, key), save({**arrays, "sha256": _digest(key, arrays)}))


def read_reference(folder: Location, key: str) -> Reference:
    """The reference that `write_reference` wrote. Raises DataError when it is missing, damaged, or of another key."""
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
