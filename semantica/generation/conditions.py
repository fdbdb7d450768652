"""Held-out pictures as conditioning images: what the encoder says of the few that some samples need.

In: finished encodings, with tokens or without, and which of their pictures are wanted. Out: their `Conditioning`; only the row
groups that hold them are read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from semantica.conditioning.values import Conditioning
from semantica.data.dataset import RowGroups, read_manifest
from semantica.data.location import Location
from semantica.data.pictures import PictureRef, TokensOf
from semantica.data.schemas import HELD_OUT, token_rows
from semantica.errors import DataError
from semantica.pairs.scores import pooled_rows

_Encoded = tuple[Tensor, Tensor | bytes]
"""The pooled embedding of a picture, and its tokens or, where encodings hold none, the stored picture."""


class Conditions:
    """`conditions.read(wanted)`: the conditioning of some held-out pictures. tokens_of: for encodings that hold no tokens."""

    def __init__(self, encodings: Location, tokens_of: TokensOf | None) -> None:
        self.encodings, self.tokens_of = encodings, tokens_of
        manifest = read_manifest(encodings, "encodings")
        identity = manifest.facts["encoder"]
        self._shape = (identity["num_tokens"], identity["token_dim"])
        self._files = manifest.shards(HELD_OUT)
        self._stored = bool(manifest.config["store_tokens"])
        columns = ["episode_id", "images", "pooled", *(["tokens"] if self._stored else [])]
        self._groups = RowGroups(encodings, columns, stage="generate", made_by="encode")
        if not self._stored and tokens_of is None:
            raise DataError(f"generate: {encodings} holds no tokens; pass tokens_of, or run semantica encode with --store-tokens")

    def read(self, wanted: Sequence[PictureRef]) -> Conditioning:
        """The conditioning, one row per picture; a picture that is wanted twice is read, and encoded, once."""
        encoded: dict[PictureRef, _Encoded] = {}
        for file, group in dict.fromkeys((ref.file, ref.group) for ref in wanted):
            encoded |= self._of_group(file, group, {ref for ref in wanted if (ref.file, ref.group) == (file, group)})
        tokens = {ref: value for ref, (_, value) in encoded.items() if isinstance(value, Tensor)}
        pictures = {ref: value for ref, (_, value) in encoded.items() if isinstance(value, bytes)}
        if pictures and self.tokens_of is not None:
            tokens |= dict(zip(pictures, self.tokens_of(list(pictures.values())), strict=True))
        return Conditioning.of(torch.stack([tokens[ref] for ref in wanted]), torch.stack([encoded[ref][0] for ref in wanted]))

    def _of_group(self, file: int, group: int, wanted: set[PictureRef]) -> dict[PictureRef, _Encoded]:
        table = self._groups.read(self._files[file], group)
        tokens = token_rows(table["tokens"]) if self._stored else [None] * table.num_rows
        rows = zip(table["episode_id"].to_pylist(), table["images"], pooled_rows(table["pooled"]), tokens, strict=True)
        encoded: dict[PictureRef, _Encoded] = {}
        for episode_id, images, pooled, row_tokens in rows:
            for index, image in enumerate(images.values):
                ref = PictureRef(image["image_id"].as_py(), episode_id, file, group)
                if ref not in wanted or ref in encoded:
                    continue
                value: Tensor | bytes = image["bytes"].as_py()
                if row_tokens is not None:
                    value = torch.from_numpy(row_tokens[index].astype(np.float32).reshape(self._shape))
                encoded[ref] = (torch.from_numpy(pooled[index]), value)
        return encoded
