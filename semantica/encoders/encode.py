"""Episodes -> encodings: every picture of a stream of episodes gets its pooled embedding and, if configured, its tokens.

In: EPISODES tables, one after the other (a few MiB of a shard each). Out: for each table, in order, the same rows plus `pooled`
(and `tokens`), float16; the quarantine rows of pictures that do not decode; and the sum of the pooled embeddings, which may be
added up (a mean-centred score subtracts the corpus mean).

Pictures of all episodes and row groups form one stream of full batches. A thread decodes the next batch while the encoder works. A
table is returned when its last picture is encoded, so memory holds a few tables for any length of the stream. Every batch has the
same shape (`on_the_fly.py` says why).
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from semantica.data.schemas import QUARANTINE, encodings_schema, token_column
from semantica.encoders.encoder import Encoded, Encoder, EncoderIdentity
from semantica.encoders.settings import EncodeConfig
from semantica.errors import DataError

_UNDECODABLE = "undecodable"  # the same code as in ingest
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class EncodedEpisodes:
    """The encodings of one EPISODES table, its undecodable pictures, and counts and sums that may be added up."""

    table: pa.Table
    quarantine: pa.Table
    num_images: int
    num_episodes_lost: int  # episodes without a decodable picture
    pooled_sum: Float[np.ndarray, " d"]  # float64, of the stored float16 values


def decode_picture(data: bytes) -> UInt8[Tensor, "3 h w"]:
    """The RGB pixels of a stored picture. Raises DataError when the bytes are not the JPEG, PNG or WebP that ingest writes."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"a stored picture cannot be decoded ({error}); run semantica ingest again") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def decode_square(data: bytes) -> UInt8[Tensor, "3 h h"]:
    """The RGB pixels of a stored picture. Raises DataError as `decode_picture`, and when the picture is not square."""
    picture = decode_picture(data)
    if picture.shape[1] != picture.shape[2]:
        raise DataError(f"a stored picture must be square, got {picture.shape[2]}x{picture.shape[1]}; run semantica ingest again")
    return picture


def encode_pictures(pictures: Sequence[bytes], encoder: Encoder, batch_size: int) -> Encoded:
    """tokens (M, N, D) and pooled (M, D) of M stored pictures, in batches of one shape."""
    identity = encoder.identity
    parts = [Encoded(torch.zeros(0, identity.num_tokens, identity.token_dim), torch.zeros(0, identity.pooled_dim))]
    for start in range(0, len(pictures), batch_size):
        chunk = [decode_square(data) for data in pictures[start : start + batch_size]]
        parts.append(encode_batch(chunk, encoder, batch_size))
    return Encoded(torch.cat([p.tokens for p in parts]), torch.cat([p.pooled for p in parts]))


def encode_batch(pictures: Sequence[UInt8[Tensor, "3 _ _"]], encoder: Encoder, batch_size: int) -> Encoded:
    """tokens and pooled of 1 to batch_size pictures. The batch is filled up to batch_size by repeating the last picture."""
    if len({picture.shape for picture in pictures}) == 1:
        fitted = encoder.fit(torch.stack(list(pictures)))
    else:
        fitted = torch.cat([encoder.fit(picture[None]) for picture in pictures])
    missing = batch_size - len(pictures)
    if missing:
        fitted = torch.cat([fitted, fitted[-1:].expand(missing, -1, -1, -1)])
    encoded = encoder.encode_fitted(fitted)
    return Encoded(encoded.tokens[: len(pictures)], encoded.pooled[: len(pictures)])


def encode_stream(episodes: Iterable[pa.Table], encoder: Encoder, settings: EncodeConfig) -> Iterator[EncodedEpisodes]:
    """The encodings of each EPISODES table of a stream, in order; only the last batch of the whole stream is not full."""
    groups = (_Group(table, encoder.identity, settings) for table in episodes)
    with closing(_read_ahead(_batches(groups, settings.batch_size), _BATCHES_AHEAD)) as batches:
        for batch in batches:
            if batch.pictures:
                encoded = encode_batch(batch.pictures, encoder, settings.batch_size)
                pooled = encoded.pooled.numpy().astype(np.float16)
                tokens = encoded.tokens.flatten(1).numpy().astype(np.float16) if settings.store_tokens else None
                for row, (group, place) in enumerate(batch.places):
                    group.pooled[place] = pooled[row]
                    if tokens is not None and group.tokens is not None:
                        group.tokens[place] = tokens[row]
                del encoded, pooled, tokens, group
            batch.pictures.clear()  # frees the memory while this loop waits for the next batch
            batch.places.clear()
            while batch.finished:
                yield batch.finished.pop(0).encodings()


def encoded_schema(identity: EncoderIdentity, settings: EncodeConfig) -> pa.Schema:
    """The schema of the encodings of this encoder with these settings."""
    if settings.store_tokens:
        return encodings_schema(identity.pooled_dim, identity.num_tokens, identity.token_dim)
    return encodings_schema(identity.pooled_dim, None, None)


def encode_episodes(episodes: pa.Table, encoder: Encoder, settings: EncodeConfig) -> EncodedEpisodes:
    """The encodings of one EPISODES table."""
    return next(encode_stream([episodes], encoder, settings))


@dataclass
class _Batch:
    """Up to batch_size decoded pictures, the place of each in its group, and the groups that are complete after this batch."""

    pictures: list[Tensor] = field(default_factory=list)
    places: list[tuple[_Group, int]] = field(default_factory=list)
    finished: list[_Group] = field(default_factory=list)


def _batches(groups: Iterable[_Group], batch_size: int) -> Iterator[_Batch]:
    batch = _Batch()
    for group in groups:
        for index, data in enumerate(group.stored_pictures()):
            try:
                picture = decode_square(data)
            except DataError as error:
                group.bad[index] = str(error)
                continue
            batch.pictures.append(picture)
            batch.places.append((group, index))
            if len(batch.pictures) == batch_size:
                yield batch
                batch = _Batch()
        batch.finished.append(group)
    yield batch


def _read_ahead(batches: Iterator[_Batch], depth: int) -> Generator[_Batch]:
    """The same batches; a thread prepares up to `depth` of them ahead."""

    def draw() -> _Batch | None:
        return next(batches, None)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode") as thread:
        waiting = [thread.submit(draw) for _ in range(depth)]
        try:
            while (batch := waiting.pop(0).result()) is not None:
                waiting.append(thread.submit(draw))
                yield batch
        finally:
            for future in waiting:
                future.cancel()


class _Group:
    """One table of episodes that is being encoded: its flat pictures, their embeddings so far, and the undecodable ones."""

    def __init__(self, table: pa.Table, identity: EncoderIdentity, settings: EncodeConfig) -> None:
        self.table, self.schema = table, encoded_schema(identity, settings)
        self.images = table["images"].combine_chunks()
        if isinstance(self.images, pa.ChunkedArray):  # of a table without chunks
            self.images = pa.array([], table.schema.field("images").type)
        self.flat = self.images.flatten()
        self.bad: dict[int, str] = {}  # flat index -> what is wrong with the picture
        number, width = len(self.flat), identity.num_tokens * identity.token_dim
        self.pooled = np.zeros((number, identity.pooled_dim), np.float16)
        self.tokens = np.zeros((number, width), np.float16) if settings.store_tokens else None

    def stored_pictures(self) -> Iterator[bytes]:
        """The bytes of every picture, row by row."""
        for value in self.flat.field("bytes"):
            yield value.as_py()

    def encodings(self) -> EncodedEpisodes:
        """The rows with the new columns, without the undecodable pictures."""
        sizes = np.diff(self.images.offsets.to_numpy())
        page = np.repeat(np.arange(len(sizes)), sizes)  # of each flat picture
        good = np.array([index not in self.bad for index in range(len(self.flat))], bool)
        left = np.bincount(page[good], minlength=len(sizes))  # pictures per page
        rows = (left > 0) | (sizes == 0)  # a page without pictures in the input stays as it is
        table = self.table
        if self.bad:
            images = pa.ListArray.from_arrays(_offsets(left), self.flat.filter(pa.array(good)))
            table = table.set_column(table.schema.get_field_index("images"), table.schema.field("images"), images)
            table = table.filter(pa.array(rows))
        offsets, pooled = _offsets(left[rows]), self.pooled[good] if self.bad else self.pooled
        columns: list[Any] = [*table.columns, _fold(pooled, offsets)]
        if self.tokens is not None:
            columns.append(token_column(self.tokens[good] if self.bad else self.tokens, offsets))
        return EncodedEpisodes(
            table=pa.Table.from_arrays(columns, schema=self.schema),
            quarantine=self._quarantine(page),
            num_images=len(pooled),
            num_episodes_lost=int((~rows).sum()),
            pooled_sum=pooled.astype(np.float64).sum(0),
        )

    def _quarantine(self, page: np.ndarray) -> pa.Table:
        pages, urls = self.table["page_url"], self.flat.field("url")
        rows = [
            {"page_url": pages[page[index]].as_py(), "url": urls[index].as_py(), "reason": _UNDECODABLE, "detail": detail}
            for index, detail in sorted(self.bad.items())
        ]
        return pa.Table.from_pylist(rows, schema=QUARANTINE)


def _offsets(sizes: np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())


def _fold(values: np.ndarray, offsets: pa.Array) -> pa.ListArray:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.ListArray.from_arrays(offsets, flat)
