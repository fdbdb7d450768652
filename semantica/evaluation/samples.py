"""Where samples lie: a growing folder of an evaluation ("drawn"), or an output of semantica generate ("samples").

In: requests. Out: in which file each sample is, under which id, and its pixels. Both folders hold SAMPLES rows; they differ in how
they call a sample, and in what is known of a file before it is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from semantica.data.dataset import FileEntry, StageOutput, read_manifest, read_shard
from semantica.data.location import Location
from semantica.data.pictures import decode, to_array
from semantica.errors import DataError
from semantica.evaluation.requests import Request


@dataclass(frozen=True)
class SampleFolder:
    """A finished folder of samples. kind: "drawn" or "samples"."""

    folder: Location
    kind: str = "drawn"

    def files(self, requests: Sequence[Request]) -> Iterator[tuple[FileEntry, dict[str, str]]]:
        """Each file that holds some of the requests, with the name of the request by sample id, in the order of the rows.

        Raises DataError when a request is in no file.
        """
        left = {request.name for request in requests}
        ids = {self._sample_id(request): request.name for request in requests}
        for entry, held in self._listing():
            names = {sample_id: ids[sample_id] for sample_id in held if sample_id in ids}
            if names:
                left.difference_update(names.values())
                yield entry, names
        if left:
            raise DataError(
                f"evaluate: {self.folder} lacks {len(left)} samples that are asked for, the first is {min(left)}; give samples of "
                "every conditioning image at every w, or run the same command again"
            )

    def read(self, requests: Sequence[Request], side: int) -> dict[str, np.ndarray]:
        """The pictures of the requests by name, (h, w, 3) uint8."""
        pictures = {}
        for entry, names in self.files(requests):
            for row in read_shard(self.folder, entry, ["sample_id", "bytes"]).to_pylist():
                if row["sample_id"] in names:
                    pictures[names[row["sample_id"]]] = to_array(decode(row["bytes"], side))
        return pictures

    def _sample_id(self, request: Request) -> str:
        return request.name if self.kind == "drawn" else f"{request.noise_name}/{request.guidance:g}"

    def _listing(self) -> Iterator[tuple[FileEntry, Sequence[str]]]:
        manifest = read_manifest(self.folder, self.kind)
        if self.kind == "samples":
            for entry in manifest.shards():
                yield entry, read_shard(self.folder, entry, ["sample_id"])["sample_id"].to_pylist()
            return
        entries: Mapping[str, FileEntry] = {entry.path.removesuffix(".parquet"): entry for entry in manifest.shards()}
        for stem, stats in StageOutput.of(self.folder, manifest).receipts():
            yield entries[stem], stats["names"]
