"""A batch of requests -> pictures: what one actor does, pure but for the network it is given.

The network always sees batch_size rows, the last one repeated, in chunks that do not depend on free memory: the same kernels run
whatever the batch holds, so that a sample has the same pixels with other neighbours, on another worker, at another try. (Only when
a device says that its memory is out is a batch drawn in halves; then it is the same up to rounding.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import UInt8
from torch import Tensor

from semantica.conditioning import Conditioning
from semantica.data.schemas import SAMPLES
from semantica.evaluation.requests import Batch
from semantica.generation.generate import png_bytes, sample_pictures
from semantica.generation.model import Model
from semantica.generation.settings import GenerateConfig
from semantica.signals import SIMILARITY


def draw(model: Model, cond: Conditioning, batch: Batch, settings: GenerateConfig) -> UInt8[Tensor, "b 3 h w"]:
    """The pictures of the batch; `cond` has a row for each request."""
    num, size = len(batch.requests), max(settings.batch_size, len(batch.requests))
    rows = torch.arange(size).clamp_max(num - 1)
    filled = cond[rows]
    if settings.similarity is not None:
        filled = filled.told(SIMILARITY, torch.full((size,), settings.similarity))
    names = [batch.requests[row].noise_name for row in rows.tolist()]
    one_seed = replace(settings, seed=batch.seed)
    max_rows = size if batch.guidance == 0 else 2 * size
    return sample_pictures(model, filled, names, batch.guidance, one_seed, max_rows=max_rows)[:num]


def sample_rows(batch: Batch, episodes: dict[str, str], pictures: UInt8[Tensor, "b 3 h w"]) -> pa.Table:
    """The SAMPLES rows of a drawn batch; episodes: image_id -> episode_id."""
    rows: list[dict[str, Any]] = [
        {
            "sample_id": request.name,
            "image_id": request.image_id,
            "episode_id": episodes[request.image_id],
            "guidance": request.guidance,
            "sample_index": request.index,
            "bytes": png_bytes(picture),
        }
        for request, picture in zip(batch.requests, pictures, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLES)
