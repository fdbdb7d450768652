"""Held-out pictures as conditioning images: what the encoder says of the few that some samples need, and their further signals.

In: finished encodings, with tokens or without, and which of their pictures are wanted. Out: their `Conditioning`; only the row
groups that hold them are read. Encodings may hold the values of a declared signal in a column of its name: per page a list with one
value per picture, a list of numbers, or null for a picture that lacks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from semantica.conditioning.signals import Signal
from semantica.conditioning.values import Conditioning, SignalValues
from semantica.data.dataset import RowGroups, read_manifest
from semantica.data.location import Location
from semantica.data.pictures import PictureRef, TokensOf
from semantica.data.schemas import HELD_OUT, encodings_schema, token_rows
from semantica.errors import DataError
from semantica.pairs.scores import pooled_rows


@dataclass(frozen=True)
class _Encoded:
    """A picture: its pooled embedding, its tokens or, where encodings hold none, its bytes, and its values of signals."""

    pooled: Tensor
    seen: Tensor | bytes
    told: dict[str, Any]


def columns_of(encodings: Location, signals: Sequence[Signal]) -> list[str]:
    """The declared signals whose values lie in a column of the encodings. The columns that encode writes are none."""
    shards = read_manifest(encodings, "encodings").shards(HELD_OUT)
    if not signals or not shards:
        return []
    path = encodings / shards[0].path
    try:
        with path.open("rb") as stream, pq.ParquetFile(stream) as file:
            own = set(file.schema_arrow.names) - set(encodings_schema(1, 1, 1).names)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"generate: {path} is not readable ({error}); make the encodings again") from None
    return [signal.name for signal in signals if signal.name in own]


class Conditions:
    """`conditions.read(wanted)`: the conditioning of some held-out pictures. tokens_of: for encodings that hold no tokens.

    signals: those whose values are read from columns. resolution_px: of what is drawn, the side of a signal's channels.
    """

    def __init__(
        self, encodings: Location, tokens_of: TokensOf | None, signals: Sequence[Signal] = (), resolution_px: int = 1
    ) -> None:
        self.encodings, self.tokens_of, self.signals, self.resolution_px = encodings, tokens_of, signals, resolution_px
        manifest = read_manifest(encodings, "encodings")
        identity = manifest.facts["encoder"]
        self._shape = (identity["num_tokens"], identity["token_dim"])
        self._files = manifest.shards(HELD_OUT)
        self._stored = bool(manifest.config["store_tokens"])
        columns = ["episode_id", "images", "pooled", *(["tokens"] if self._stored else [])]
        columns += [signal.name for signal in signals]
        self._groups = RowGroups(encodings, columns, stage="generate", made_by="encode")
        if not self._stored and tokens_of is None:
            raise DataError(f"generate: {encodings} holds no tokens; pass tokens_of, or run semantica encode with --store-tokens")

    def read(self, wanted: Sequence[PictureRef]) -> Conditioning:
        """The conditioning, one row per picture; a picture that is wanted twice is read, and encoded, once."""
        encoded: dict[PictureRef, _Encoded] = {}
        for file, group in dict.fromkeys((ref.file, ref.group) for ref in wanted):
            encoded |= self._of_group(file, group, {ref for ref in wanted if (ref.file, ref.group) == (file, group)})
        tokens = {ref: one.seen for ref, one in encoded.items() if isinstance(one.seen, Tensor)}
        pictures = {ref: one.seen for ref, one in encoded.items() if isinstance(one.seen, bytes)}
        if pictures and self.tokens_of is not None:
            tokens |= dict(zip(pictures, self.tokens_of(list(pictures.values())), strict=True))
        cond = Conditioning.of(torch.stack([tokens[ref] for ref in wanted]), torch.stack([encoded[ref].pooled for ref in wanted]))
        for signal in self.signals:
            cond = cond.told(signal.name, self._told(signal, [(ref, encoded[ref].told[signal.name]) for ref in wanted]))
        return cond

    def _told(self, signal: Signal, values: Sequence[tuple[PictureRef, Any]]) -> SignalValues:
        shape, told = signal.shape(self.resolution_px), []
        for ref, value in values:
            numbers = np.zeros(shape, np.float32) if value is None else _numbers(value)
            if numbers is None or numbers.size != np.prod(shape) or not np.isfinite(numbers).all():
                raise DataError(
                    f"generate: column {signal.name} of {self.encodings} must hold {np.prod(shape)} finite numbers or null for "
                    f"each picture (the signal's shape is {shape}), but not so for picture {ref.image_id}; write the column again"
                )
            told.append(torch.from_numpy(numbers.reshape(shape)))
        present = torch.tensor([value is not None for _, value in values])
        return SignalValues.of(signal, torch.stack(told)).dropped(~present)

    def _of_group(self, file: int, group: int, wanted: set[PictureRef]) -> dict[PictureRef, _Encoded]:
        table = self._groups.read(self._files[file], group)
        tokens = token_rows(table["tokens"]) if self._stored else [None] * table.num_rows
        rows = zip(table["episode_id"].to_pylist(), table["images"], pooled_rows(table["pooled"]), tokens, strict=True)
        encoded: dict[PictureRef, _Encoded] = {}
        for row, (episode_id, images, pooled, row_tokens) in enumerate(rows):
            for index, image in enumerate(images.values):
                ref = PictureRef(image["image_id"].as_py(), episode_id, file, group)
                if ref not in wanted or ref in encoded:
                    continue
                value: Tensor | bytes = image["bytes"].as_py()
                if row_tokens is not None:
                    value = torch.from_numpy(row_tokens[index].astype(np.float32).reshape(self._shape))
                told = {signal.name: self._value(table, signal.name, row, index) for signal in self.signals}
                encoded[ref] = _Encoded(torch.from_numpy(pooled[index]), value, told)
        return encoded

    def _value(self, table: pa.Table, column: str, row: int, index: int) -> Any:
        of_page, num = table[column][row], len(table["images"][row])
        if not isinstance(of_page, (pa.ListScalar, pa.FixedSizeListScalar)) or len(of_page.values or ()) != num:
            raise DataError(
                f"generate: column {column} of {self.encodings} must hold one value per picture of a page; write it again"
            )
        return of_page.values[index].as_py()


def _numbers(value: Any) -> np.ndarray | None:
    try:
        return np.asarray(value, np.float32)
    except (ValueError, TypeError):
        return None
