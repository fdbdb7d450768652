"""Pictures of an evaluation -> FEATURES rows, by the encoder, Inception and a perceptual net that are loaded once.

The encoder is the one that made the encodings. Which of the others there are is decided before, by `find_weights`, for all actors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import UInt8
from torch import Tensor

from semantica.data.schemas import HELD_OUT_FEATURES
from semantica.encoders.encoder import Encoder
from semantica.measure.networks.extractors import Found, identity_of, load_features, load_perceptual, resolve_available

_PERCEPTUAL = ("lpips-alex", "st-lpips-alex")  # the first that is there


@dataclass(frozen=True)
class MetricWeights:
    """Files of metric weights that were found, "" where none was; perceptual_net: which of PERCEPTUAL_NAMES it is."""

    inception: str = ""
    perceptual: str = ""
    perceptual_net: str = ""

    @property
    def perceptual_name(self) -> str:
        """What a report calls the perceptual distance."""
        return identity_of(self.perceptual_net).title if self.perceptual_net else ""


def find_weights(*, inception: bool, perceptual: bool) -> tuple[MetricWeights, list[str]]:
    """(the metric weights that are on this machine, for the report a sentence for each that was left out, and why)."""
    found, skipped = resolve_available(["inception"] if inception else [])
    nets, left_out = resolve_available(_PERCEPTUAL if perceptual else [])
    notes = [f"{identity_of(s.name).figure} was not computed: {s.reason}." for s in (*skipped, *left_out)]
    if not nets:
        return MetricWeights(found[0].path if found else ""), notes
    return MetricWeights(found[0].path if found else "", nets[0].path, nets[0].name), notes


@dataclass(frozen=True)
class Picture:
    """A picture to measure: what it is called, its pixels, and for a sample its guidance and its conditioning image."""

    name: str
    pixels: UInt8[Tensor, "3 h w"]
    condition: str = ""
    condition_pixels: UInt8[Tensor, "3 h w"] | None = None
    guidance: float | None = None


class Extractors:
    """The networks of an evaluation, loaded once: the encoder, and Inception and a perceptual net where they are there."""

    def __init__(self, encoder: Encoder, weights: MetricWeights, batch_size: int) -> None:
        self.encoder, self.batch_size = encoder, batch_size
        self.inception = self.perceptual = None
        if weights.inception:
            found = Found("inception", weights.inception, identity_of("inception"))
            self.inception = load_features(found, encoder.device, batch_size)
        if weights.perceptual:
            found = Found(weights.perceptual_net, weights.perceptual, identity_of(weights.perceptual_net))
            self.perceptual = load_perceptual(found, encoder.device, batch_size)

    def features(self, set_name: str, pictures: Sequence[Picture], *, with_inception: bool) -> pa.Table:
        """The FEATURES rows of pictures of one size."""
        rows: list[dict[str, Any]] = []
        for start in range(0, len(pictures), self.batch_size):
            chunk = pictures[start : start + self.batch_size]
            images = torch.stack([p.pixels for p in chunk])
            pooled = self.encoder(images).pooled.numpy()
            inception: Any = [None] * len(chunk)
            if self.inception is not None and with_inception:
                inception = self.inception.features(images).numpy()
            distance = self._distances(chunk, images)
            for i, picture in enumerate(chunk):
                rows.append(
                    {
                        "set": set_name,
                        "name": picture.name,
                        "condition": picture.condition,
                        "guidance": picture.guidance,
                        "pooled": pooled[i],
                        "inception": inception[i],
                        "perceptual": distance[i],
                    }
                )
        return pa.Table.from_pylist(rows, schema=HELD_OUT_FEATURES)

    def _distances(self, chunk: Sequence[Picture], images: Tensor) -> list[float | None]:
        conditions = [p.condition_pixels for p in chunk if p.condition_pixels is not None]
        if self.perceptual is None or len(conditions) < len(chunk):
            return [None] * len(chunk)
        values: list[float | None] = self.perceptual.distances(images, torch.stack(conditions)).tolist()
        return values
