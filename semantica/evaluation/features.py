"""Features by name: a finished dataset of features, read as matrices whose rows stand in the order of the names that are asked for.

Since rows are looked up by name, no figure depends on which worker measured what, in which order, or how often it was tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Float64

from semantica.data.dataset import FileEntry, Manifest, read_manifest, read_shard
from semantica.data.location import Location
from semantica.errors import DataError

_FILES_AT_ONCE = 8


class Features:
    """`features.matrix(network, names)`, `features.distances(network, names)`.

    manifest: of a dataset of features, or of one that is about to be finished. columns: network -> its sub-folder.
    """

    def __init__(self, folder: Location, manifest: Manifest, columns: Mapping[str, str]) -> None:
        self.folder, self.columns = folder, columns
        self._manifest = manifest
        self._places: dict[str, dict[str, tuple[FileEntry, int]]] = {}

    @classmethod
    def open(cls, folder: Location, columns: Mapping[str, str]) -> Features:
        """Those of a finished dataset."""
        return cls(folder, read_manifest(folder, "features"), columns)

    @property
    def resolution_px(self) -> int:
        """The side that pictures were measured at."""
        return int(self._manifest.config["resolution_px"])

    def matrix(self, network: str, names: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        """The features of the named pictures, one row per name; a name that stands twice has two rows."""
        values: Float32[np.ndarray, "n d"] = np.stack(self._values(network, names, _vectors)) if names else np.zeros((0, 1), "f4")
        return values

    def distances(self, network: str, names: Sequence[str]) -> Float64[np.ndarray, " n"]:
        """The perceptual distance of the named samples to their conditioning images."""
        return np.array(self._values(network, names, _numbers), np.float64)

    def _values(self, network: str, names: Sequence[str], read: Any) -> list[Any]:
        places = self._index(network)
        missing = [name for name in dict.fromkeys(names) if name not in places]
        if missing:
            raise DataError(
                f"evaluate: {self.folder} holds no features by {network} of {len(missing)} pictures, the first is {missing[0]}; "
                "run the same command again"
            )
        entries = {places[name][0].path: places[name][0] for name in names}
        with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
            tables = dict(zip(entries, threads.map(lambda entry: read(self._table(entry)), entries.values()), strict=True))
        return [tables[entry.path][row] for entry, row in (places[name] for name in names)]

    def _table(self, entry: FileEntry) -> pa.Table:
        return read_shard(self.folder, entry)

    def _index(self, network: str) -> dict[str, tuple[FileEntry, int]]:
        """name -> where its row is; of a name that stands in two files, either: the rows are the same."""
        if network not in self._places:
            entries = self._manifest.shards(self.columns[network])
            with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
                names = threads.map(lambda entry: read_shard(self.folder, entry, ["name"])["name"].to_pylist(), entries)
                self._places[network] = {
                    name: (entry, row) for entry, of in zip(entries, names, strict=True) for row, name in enumerate(of)
                }
        return self._places[network]


def _vectors(table: pa.Table) -> Float32[np.ndarray, "n d"]:
    column = table["features"].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    vectors: Float32[np.ndarray, "n d"] = flat.reshape(len(column), -1)
    return vectors


def _numbers(table: pa.Table) -> Float64[np.ndarray, " n"]:
    numbers: Float64[np.ndarray, " n"] = table["distance"].to_numpy().astype(np.float64)
    return numbers
