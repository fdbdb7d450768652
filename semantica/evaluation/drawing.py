"""Samples of one w that are drawn together -> their pictures and rows: what one actor does, pure but for the network it is
given.

Where batches are filled, the network always sees batch_size rows, the last one repeated, in chunks that do not depend on free
memory: the same kernels run whatever the batch holds, so that a sample has the same pixels with other neighbours, on another
worker, at another try. (Only when a device says that its memory is out is a batch drawn in halves; then it is the same up to
rounding.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
import torch
from jaxtyping import UInt8
from torch import Tensor

from semantica.conditioning.signals import SIMILARITY, constants_of
from semantica.conditioning.values import Conditioning, SignalValues
from semantica.data.pictures import PictureRef
from semantica.data.schemas import SAMPLES
from semantica.generation.generate import png_bytes, sample_pictures
from semantica.generation.model import Model
from semantica.generation.settings import GenerateConfig


@dataclass(frozen=True)
class Sample:
    """A sample to draw: its id in the dataset, its conditioning image, and which of the image's samples it is."""

    sample_id: str
    picture: PictureRef
    index: int

    @property
    def noise_name(self) -> str:
        """What keys its noise, together with the seed."""
        return f"{self.picture.image_id}/{self.index}"


@dataclass(frozen=True)
class SampleShard:
    """Samples of one w and seed. is_filled: the network sees batch_size rows, however few there are."""

    name: str
    guidance: float
    seed: int
    samples: tuple[Sample, ...]
    is_filled: bool = True


def draw(model: Model, cond: Conditioning, shard: SampleShard, settings: GenerateConfig) -> UInt8[Tensor, "b 3 h w"]:
    """The pictures of the shard; `cond` has a row for each sample."""
    num = len(shard.samples)
    size = max(settings.batch_size, num) if shard.is_filled else num
    rows = torch.arange(size).clamp_max(num - 1)
    filled = cond[rows] if shard.is_filled else cond
    if settings.similarity is not None:
        filled = filled.told(SIMILARITY, torch.full((size,), settings.similarity))
    declared = {signal.name: signal for signal in model.network.config.signals}
    for name, numbers in constants_of(settings.signals).items():
        values = SignalValues.constant(declared[name], numbers, size, model.network.config.resolution_px)
        filled = filled.told(name, values)
    names = [shard.samples[row].noise_name for row in rows.tolist()]
    one_seed = replace(settings, seed=shard.seed)
    max_rows = (size if shard.guidance == 0 else 2 * size) if shard.is_filled else None
    return sample_pictures(model, filled, names, shard.guidance, one_seed, max_rows=max_rows)[:num]


def sample_rows(shard: SampleShard, pictures: UInt8[Tensor, "b 3 h w"]) -> pa.Table:
    """The SAMPLES rows of a drawn shard."""
    rows = [
        {
            "sample_id": sample.sample_id,
            "image_id": sample.picture.image_id,
            "episode_id": sample.picture.episode_id,
            "guidance": shard.guidance,
            "sample_index": sample.index,
            "bytes": png_bytes(picture),
        }
        for sample, picture in zip(shard.samples, pictures, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLES)
