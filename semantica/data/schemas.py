"""The Arrow schemas between stages: the contract of the whole system.

    pages --ingest--> EPISODES (+ QUARANTINE) --encode--> encodings --pairs--> SCORES --train--> checkpoint
    checkpoint + encodings --generate, evaluate--> SAMPLES --evaluate--> FEATURES, DISTANCES

A page is one row and never spans rows, so no stage needs a shuffle or a group-by.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from jaxtyping import Float16

SCHEMA_VERSION = 2
HELD_OUT = "held_out"  # sub-folder of episodes and encodings: the pictures that no training sees

IMAGE = pa.struct(
    [
        pa.field("image_id", pa.string(), nullable=False),  # SHA-256 (32 hex digits) of the original bytes
        pa.field("url", pa.string(), nullable=False),
        pa.field("bytes", pa.binary(), nullable=False),  # JPEG, PNG or WebP, RGB, square
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
    ]
)

EPISODES = pa.schema(
    [
        pa.field("episode_id", pa.string(), nullable=False),  # SHA-256 (32 hex digits) of source and page URL
        pa.field("page_url", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("images", pa.list_(IMAGE), nullable=False),
    ]
)

QUARANTINE = pa.schema(
    [
        pa.field("page_url", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),  # "" when the page itself is refused
        pa.field("reason", pa.string(), nullable=False),  # a code of episodes.quarantine.Reason
        pa.field("detail", pa.string(), nullable=False),
    ]
)

SCORES = pa.schema(
    [
        pa.field("episode_id", pa.string(), nullable=False),
        pa.field("num_images", pa.int32(), nullable=False),
        # Upper triangle (i < j, row by row) of the cosine matrix of the pooled embeddings.
        pa.field("cosine", pa.list_(pa.float32()), nullable=False),
        pa.field("centred_cosine", pa.list_(pa.float32()), nullable=False),
    ]
)

SAMPLES = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),  # the conditioning image
        pa.field("episode_id", pa.string(), nullable=False),
        pa.field("guidance", pa.float32(), nullable=False),
        pa.field("sample_index", pa.int32(), nullable=False),
        pa.field("bytes", pa.binary(), nullable=False),  # PNG
    ]
)

# What `semantica apply` made of pictures: the PNG of each sample, its latents ("latents"), and the pictures it could not use.
EDITS = pa.schema(
    [
        pa.field("picture", pa.string(), nullable=False),  # its path in the folder, without suffix
        pa.field("sample_index", pa.int32(), nullable=False),
        pa.field("file", pa.string(), nullable=False),  # in the output
    ]
)
LATENTS = pa.schema(
    [
        pa.field("picture", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int32()), nullable=False),
        pa.field("z", pa.binary(), nullable=False),  # float32, little endian
    ]
)
REFUSED = pa.schema([pa.field("picture", pa.string(), nullable=False), pa.field("reason", pa.string(), nullable=False)])

# What one network makes of pictures: a table each network, keyed by name, so that a picture measured twice counts once.
FEATURES = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),  # image_id, or the name of a sample (evaluation.requests)
        pa.field("features", pa.list_(pa.float32()), nullable=False),
    ]
)

DISTANCES = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("distance", pa.float32(), nullable=False),  # perceptual, of a sample to its conditioning image
    ]
)


def encodings_schema(pooled_dim: int, num_tokens: int | None, token_dim: int | None) -> pa.Schema:
    """EPISODES plus `pooled`, float16 (D,) an image, and, when stored, `tokens`, float16 (N, D) an image as little-endian bytes.

    Bytes, not a list of numbers: Parquet keeps two levels for each number of a nested list, and to read these takes three times as
    long as to read the numbers.
    """
    fields = [*EPISODES, pa.field("pooled", pa.list_(pa.list_(pa.float16(), pooled_dim)), nullable=False)]
    if num_tokens and token_dim:
        fields.append(pa.field("tokens", pa.list_(pa.binary(2 * num_tokens * token_dim)), nullable=False))
    return pa.schema(fields)


def token_column(tokens: Float16[np.ndarray, "m nd"], offsets: pa.Array) -> pa.ListArray:
    """The `tokens` column of rows whose images, m in all, begin at these offsets. Shares the memory of a contiguous array."""
    kind = pa.binary(2 * tokens.shape[1])
    values = np.ascontiguousarray(tokens, "<f2")
    flat = pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
    return pa.ListArray.from_arrays(offsets, flat)


def token_rows(column: pa.ChunkedArray) -> list[Float16[np.ndarray, "n nd"]]:
    """The tokens (n, N*D) of the n images of each row of a `tokens` column; they share its memory and are not to be written to."""
    rows: list[np.ndarray] = []
    for chunk in column.chunks:
        flat = chunk.values
        width = flat.type.byte_width
        values = np.frombuffer(flat.buffers()[1] or b"", "<f2", len(flat) * width // 2, flat.offset * width)
        values, ends = values.reshape(len(flat), width // 2), chunk.offsets.to_numpy()
        rows += [values[start:end] for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
    return rows
