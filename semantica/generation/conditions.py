"""Held-out pictures as conditions: which there are and where they lie, and the conditioning of the few that some samples need.

In: finished encodings, with tokens or without. Out: candidates with the place of their row group, from ids alone, and for some of
them a `Conditioning`, for which no row group is read that holds none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from semantica.conditioning import Conditioning
from semantica.data.dataset import read_manifest, read_shard
from semantica.data.location import Location
from semantica.data.schemas import HELD_OUT as HELD_OUT  # also for those who import it from here
from semantica.data.schemas import token_rows
from semantica.errors import DataError
from semantica.generation.generate import Candidate
from semantica.pairs.scores import pooled_rows

TokensOf: TypeAlias = Callable[[Sequence[bytes]], Tensor]  # stored pictures -> tokens (M, N, D), float32


@dataclass(frozen=True)
class Place:
    """Where a picture lies: the index of the held-out file, and of the row group in it."""

    file: int
    group: int


def held_out_candidates(encodings: Location) -> dict[Candidate, Place]:
    """Every held-out picture as a possible conditioning image, with its place; no picture is read."""
    found: dict[Candidate, Place] = {}
    for file, entry in enumerate(read_manifest(encodings, "encodings").shards(HELD_OUT)):
        table = read_shard(encodings, entry, ["episode_id", "images.list.element.image_id"])
        groups = np.repeat(np.arange(len(entry.row_group_rows)), entry.row_group_rows).tolist()
        for group, episode_id, images in zip(groups, table["episode_id"].to_pylist(), table["images"].to_pylist(), strict=True):
            for image in images:
                found.setdefault(Candidate(image["image_id"], episode_id), Place(file, group))
    return found


class Conditions:
    """`conditions.read(wanted)`: the conditioning of some held-out pictures. tokens_of: for encodings that hold no tokens."""

    def __init__(self, encodings: Location, tokens_of: TokensOf | None) -> None:
        self.encodings, self.tokens_of = encodings, tokens_of
        manifest = read_manifest(encodings, "encodings")
        identity = manifest.facts["encoder"]
        self._shape = (identity["num_tokens"], identity["token_dim"])
        self._files = manifest.shards(HELD_OUT)
        self._stored = bool(manifest.config["store_tokens"])
        if not self._stored and tokens_of is None:
            raise DataError(f"generate: {encodings} holds no tokens; pass tokens_of, or run jobs.encode with --store-tokens")

    def read(self, wanted: Sequence[tuple[Candidate, Place]]) -> Conditioning:
        """The conditioning, a row for each of `wanted`; a picture that is wanted twice is read, and encoded, once."""
        found: dict[Candidate, tuple[Tensor, Tensor | bytes]] = {}
        for place in dict.fromkeys(place for _, place in wanted):
            found |= self._of_group(place, {candidate for candidate, at in wanted if at == place})
        tokens = {name: value for name, (_, value) in found.items() if isinstance(value, Tensor)}
        pictures = {name: value for name, (_, value) in found.items() if isinstance(value, bytes)}
        if pictures and self.tokens_of is not None:
            tokens |= dict(zip(pictures, self.tokens_of(list(pictures.values())), strict=True))
        names = [candidate for candidate, _ in wanted]
        return Conditioning.of(torch.stack([tokens[n] for n in names]), torch.stack([found[n][0] for n in names]))

    def _of_group(self, place: Place, wanted: set[Candidate]) -> dict[Candidate, tuple[Tensor, Tensor | bytes]]:
        """Candidate -> (pooled, tokens or, where there are none, the stored picture), of one row group."""
        table = self._row_group(place)
        tokens = token_rows(table["tokens"]) if self._stored else [None] * table.num_rows
        rows = zip(table["episode_id"].to_pylist(), table["images"], pooled_rows(table["pooled"]), tokens, strict=True)
        found: dict[Candidate, tuple[Tensor, Tensor | bytes]] = {}
        for episode_id, images, pooled, row_tokens in rows:
            for index, image in enumerate(images.values):
                candidate = Candidate(image["image_id"].as_py(), episode_id)
                if candidate not in wanted or candidate in found:
                    continue
                value: Tensor | bytes = image["bytes"].as_py()
                if row_tokens is not None:
                    value = torch.from_numpy(row_tokens[index].astype(np.float32).reshape(self._shape))
                found[candidate] = (torch.from_numpy(pooled[index]), value)
        return found

    def _row_group(self, place: Place) -> pa.Table:
        columns = ["episode_id", "images", "pooled", *(["tokens"] if self._stored else [])]
        path = self.encodings / self._files[place.file].path
        try:
            with path.open("rb") as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
                return file.read_row_group(place.group, columns=columns)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"generate: {path} is not readable ({error}); run jobs.encode again") from None
