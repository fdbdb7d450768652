"""Episodes -> encodings: every picture of a table of episodes gets its pooled embedding and, when asked for, its tokens.

In: an EPISODES table. Out: the same rows in the same order plus `pooled` (and `tokens`), float16, and the mergeable sum of the
pooled embeddings (the corpus mean that a mean-centred score subtracts). Pictures of all episodes are flattened into one stream
of full batches and folded back, so short pages never leave the encoder half empty.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from semantica.config import config, require
from semantica.encoders.dinov2 import Encoded, Encoder, EncoderConfig
from semantica.errors import DataError
from semantica.schemas import encodings_schema


@config
class EncodeConfig:
    """How episodes are encoded. store_tokens: keep the token sequence too (393 KB an image for DINOv2-B at 224 px)."""

    encoder: EncoderConfig = EncoderConfig()
    store_tokens: bool = True
    batch_size: int = 64
    rows_per_group: int = 64

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "encode.batch_size", "positive", self.batch_size)
        require(self.rows_per_group > 0, "encode.rows_per_group", "positive", self.rows_per_group)


@dataclass(frozen=True)
class EncodedShard:
    """The table of encodings and its mergeable sums."""

    table: pa.Table
    num_images: int
    pooled_sum: np.ndarray  # (D,), float64, of the stored float16 values


def decode_picture(data: bytes) -> UInt8[Tensor, "3 h w"]:
    """The RGB pixels of a stored picture. Raises DataError when the bytes are not the JPEG, PNG or WebP that ingest writes."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"a stored picture cannot be decoded ({error}); run jobs.ingest again") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def encode_pictures(pictures: list[bytes], encoder: Encoder, batch_size: int) -> Encoded:
    """tokens (M, N, D) and pooled (M, D) of M stored pictures of one size."""
    if not pictures:
        identity = encoder.identity
        return Encoded(torch.zeros(0, identity.num_tokens, identity.token_dim), torch.zeros(0, identity.pooled_dim))
    parts = []
    for start in range(0, len(pictures), batch_size):
        parts.append(encoder(torch.stack([decode_picture(data) for data in pictures[start : start + batch_size]])))
    return Encoded(torch.cat([p.tokens for p in parts]), torch.cat([p.pooled for p in parts]))


def encode_episodes(episodes: pa.Table, encoder: Encoder, settings: EncodeConfig) -> EncodedShard:
    """The encodings of an EPISODES table, row for row."""
    images = episodes["images"].to_pylist()
    encoded = encode_pictures([i["bytes"] for row in images for i in row], encoder, settings.batch_size)
    pooled = encoded.pooled.numpy().astype(np.float16)
    identity = encoder.identity
    offsets = pa.array(np.concatenate([[0], np.cumsum([len(row) for row in images])]), pa.int32())
    columns: list[Any] = [*episodes.columns, _fold(pooled, offsets)]
    schema = encodings_schema(identity.pooled_dim, None, None)
    if settings.store_tokens:
        width = identity.num_tokens * identity.token_dim  # said, not -1: a shard may hold no picture
        columns.append(_fold(encoded.tokens.numpy().astype(np.float16).reshape(len(pooled), width), offsets))
        schema = encodings_schema(identity.pooled_dim, identity.num_tokens, identity.token_dim)
    table = pa.Table.from_arrays(columns, schema=schema)
    return EncodedShard(table, len(pooled), pooled.astype(np.float64).sum(0))


def _fold(values: np.ndarray, offsets: pa.Array) -> pa.ListArray:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.ListArray.from_arrays(offsets, flat)
