"""Conditioning -> pictures: the choice of conditioning images, and the sampling of a chunk of them at one guidance weight.

Every sample has a name (conditioning image, guidance, index) and draws its noise from a generator keyed by the seed and that name
without the guidance, so that a row of a grid over w starts from one z, and no result depends on batching, worker or retry.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from semantica.conditioning import Conditioning
from semantica.config import config, require
from semantica.data.pictures import PictureRef
from semantica.diffusion.guidance import GuidanceConfig, guided
from semantica.diffusion.samplers import SamplerConfig, sampler_of
from semantica.generation.model import Model, SpeedConfig, in_chunks
from semantica.training.step import slot_seed


@config
class GenerateConfig:
    """What is drawn: for each of num_conditions held-out conditioning images, samples_per_condition pictures at each guidance w.

    similarity: how similar to the conditioning image, as the score of the band measures it; for denoisers that take one.
    """

    guidance: tuple[float, ...] = (0.0, 0.1, 0.2, 0.5, 1.0)
    beyond: GuidanceConfig = GuidanceConfig()
    sampler: SamplerConfig = SamplerConfig()
    similarity: float | None = None
    speed: SpeedConfig = SpeedConfig()
    num_conditions: int = 64
    samples_per_condition: int = 1
    use_ema: bool = True
    batch_size: int = 32  # samples a shard, which is done or not done; no more at once than fit in memory
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.guidance) > 0 and min(self.guidance) >= 0, "generate.guidance", "weights of 0 or more", self.guidance)
        require(len(set(self.guidance)) == len(self.guidance), "generate.guidance", "all different", self.guidance)
        similarity = self.similarity is None or -1 <= self.similarity <= 1
        require(similarity, "generate.similarity", "a cosine, in [-1, 1]", self.similarity)
        for name in ("num_conditions", "samples_per_condition", "batch_size"):
            require(getattr(self, name) > 0, f"generate.{name}", "positive", getattr(self, name))


def choose_conditions(candidates: Sequence[PictureRef], number: int, seed: int) -> list[PictureRef]:
    """Up to `number` conditioning images drawn uniformly from the candidates, without repetition.

    The order depends on the seed and the ids alone. A picture that stands on several pages is one candidate.
    """
    unique = {c.image_id: c for c in sorted(candidates, key=lambda c: (c.image_id, c.episode_id), reverse=True)}
    return sorted(unique.values(), key=lambda c: hashlib.sha256(f"{seed}/{c.image_id}".encode()).hexdigest())[:number]


class SampleNoise:
    """z at t = 1 and the noise of every step for a list of samples, each from a generator of its own. Steps must come in order."""

    def __init__(self, seed: int, names: Sequence[str], shape: tuple[int, int, int], device: torch.device | str = "cpu") -> None:
        self._generators = [torch.Generator().manual_seed(slot_seed("sample", seed, name)) for name in names]
        self._shape, self._device = shape, device

    def draw(self) -> Float[Tensor, "b 3 h w"]:
        """The next standard normal of every sample."""
        return torch.stack([torch.randn(self._shape, generator=g) for g in self._generators]).to(self._device)

    def __call__(self, step_index: int) -> Tensor:
        return self.draw()


def sample_pictures(
    model: Model,
    cond: Conditioning,
    names: Sequence[str],
    guidance: float,
    config: GenerateConfig,
    max_rows: int | None = None,
) -> UInt8[Tensor, "b 3 h w"]:
    """One picture (uint8) for each row of `cond`, named by `names`, at guidance weight w = `guidance`.

    Of `config` it reads sampler, beyond and seed. max_rows: of the network at once; None: as many as fit in memory. Rounding apart,
    no picture depends on it.
    """
    shape = (3, model.schedule.resolution_px, model.schedule.resolution_px)
    sampler, denoise = sampler_of(config.sampler), guided(model.denoise(), guidance, config.beyond)

    def draw(start: int, end: int) -> Tensor:
        noise = SampleNoise(config.seed, names[start:end], shape, model.device)
        x = sampler(denoise, cond[start:end].to(model.device), noise.draw(), model.schedule, config.sampler, noise)
        return to_pixels(x).cpu()

    rows = model.rows_that_fit() if max_rows is None else max_rows
    with torch.inference_mode():
        branches = 1 + (guidance != 0) + (config.beyond.request != 0 and bool(cond.asks.any()))
        return in_chunks(draw, len(names), max(1, rows // branches))


def to_pixels(x: Float[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
    """[-1, 1] as uint8, rounded; outside values are clipped."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def png_bytes(pixels: UInt8[Tensor, "3 h w"] | UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A picture as PNG."""
    array = pixels.permute(1, 2, 0).numpy() if isinstance(pixels, Tensor) else pixels
    stream = io.BytesIO()
    Image.fromarray(array, "RGB").save(stream, "PNG")
    return stream.getvalue()
