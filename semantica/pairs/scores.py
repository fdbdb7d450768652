"""Encodings -> scores: the cosine of every pair of pictures of an episode, plain and with the corpus mean subtracted.

Scores are stored once and never depend on a band. Both columns are small (4 bytes a pair), so a band, and the choice between
plain and mean-centred, is a view that reads one of them and nothing else.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from semantica.schemas import SCORES


def pooled_rows(column: pa.ChunkedArray) -> list[Float[np.ndarray, "n d"]]:
    """The pooled embeddings (n, D), float32, of each episode of an encodings column."""
    rows = []
    for value in column:
        flat = value.values  # a FixedSizeListArray slice of n embeddings
        width = flat.type.list_size
        pixels = flat.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        rows.append(pixels.reshape(len(flat), width))
    return rows


def cosine_upper(pooled: Float[np.ndarray, "n d"], mean: Float[np.ndarray, " d"] | None = None) -> Float[np.ndarray, " m"]:
    """Cosines of all pairs i < j, row by row, m = n(n-1)/2; with `mean` subtracted first when given. A zero vector scores 0."""
    x = pooled.astype(np.float64) - (0 if mean is None else mean)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    x = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
    i, j = np.triu_indices(len(x), k=1)
    # Rounding can leave 1 + 2e-16, which a band with high = 1 must not lose.
    cosines: np.ndarray = np.clip(np.einsum("md,md->m", x[i], x[j]), -1.0, 1.0).astype(np.float32)
    return cosines


def square(upper: Float[np.ndarray, " m"], n: int) -> Float[np.ndarray, "n n"]:
    """The symmetric matrix (n, n) of an upper triangle, NaN on the diagonal (a picture is no pair with itself)."""
    matrix = np.full((n, n), np.nan, np.float32)
    i, j = np.triu_indices(n, k=1)
    matrix[i, j] = matrix[j, i] = upper
    return matrix


def score_table(encodings: pa.Table, corpus_mean: Float[np.ndarray, " d"]) -> pa.Table:
    """The SCORES table of an encodings table with columns episode_id and pooled, row for row."""
    rows = pooled_rows(encodings["pooled"])
    return pa.Table.from_pydict(
        {
            "episode_id": encodings["episode_id"],
            "num_images": pa.array([len(r) for r in rows], pa.int32()),
            "cosine": [cosine_upper(r) for r in rows],
            "centred_cosine": [cosine_upper(r, corpus_mean) for r in rows],
        },
        schema=SCORES,
    )
