"""Pictures -> rows of features and of perceptual distances, keyed by name: what one actor does with the networks it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import UInt8
from torch import Tensor

from semantica.data.schemas import DISTANCES, FEATURES
from semantica.errors import DataError
from semantica.measure.networks.extractors import FeatureExtractor, PerceptualNet


@dataclass(frozen=True)
class Measured:
    """A picture to measure: its name, its pixels, and for a sample those of its conditioning image."""

    name: str
    pixels: UInt8[Tensor, "3 h w"]
    condition: UInt8[Tensor, "3 h w"] | None = None


def feature_rows(extractor: FeatureExtractor, pictures: Sequence[Measured]) -> pa.Table:
    """The FEATURES rows of pictures of one size. Raises DataError for a feature that is not finite, naming the picture."""
    if not pictures:
        return FEATURES.empty_table()
    features = extractor.features(torch.stack([p.pixels for p in pictures])).numpy().astype(np.float32)
    for picture, row in zip(pictures, features, strict=True):
        if not np.isfinite(row).all():
            raise DataError(f"evaluate: {extractor.identity.title} gives NaN or infinity for {picture.name}; look at that picture")
    values = pa.array(features.reshape(-1), pa.float32())
    offsets = pa.array(np.arange(len(features) + 1) * features.shape[1], pa.int32())
    columns = [pa.array([p.name for p in pictures]), pa.ListArray.from_arrays(offsets, values)]
    return pa.Table.from_arrays(columns, schema=FEATURES)


def distance_rows(net: PerceptualNet, pictures: Sequence[Measured]) -> pa.Table:
    """The DISTANCES rows of those pictures that have a conditioning image."""
    pairs = [(p.name, p.pixels, p.condition) for p in pictures if p.condition is not None]
    if not pairs:
        return DISTANCES.empty_table()
    distance = net.distances(torch.stack([a for _, a, _ in pairs]), torch.stack([b for _, _, b in pairs])).numpy()
    columns = [pa.array([name for name, _, _ in pairs]), pa.array(distance.astype(np.float32), pa.float32())]
    return pa.Table.from_arrays(columns, schema=DISTANCES)
