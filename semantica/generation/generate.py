"""Conditioning -> pictures: the choice of conditioning images, and the drawing of samples at one guidance weight.

`in_sample_chunks` is the one path by which the project draws. The stages, a loaded model and the pictures of a training use it
through `sample_pictures`, applications with a method of their own. Each sample has a name (conditioning image, index) and draws its
noise from a generator keyed by the seed and that name. So the samples of a grid over w start from one z, and no result depends on
batching, worker or retry.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from semantica.conditioning.values import Conditioning
from semantica.data.pictures import PictureRef
from semantica.diffusion.guidance import rows_per_picture
from semantica.diffusion.keyed_random import sample_generator
from semantica.diffusion.process import Denoise
from semantica.diffusion.samplers import Callback, Levels, Noise, Step, sample
from semantica.generation.model import Model, in_chunks
from semantica.generation.settings import GenerateConfig


def choose_conditions(candidates: Sequence[PictureRef], number: int, seed: int) -> list[PictureRef]:
    """Up to `number` conditioning images drawn uniformly from the candidates, without repetition.

    The order depends on the seed and the ids alone. A picture that is on several pages is one candidate.
    """
    unique = {c.image_id: c for c in sorted(candidates, key=lambda c: (c.image_id, c.episode_id), reverse=True)}
    return sorted(unique.values(), key=lambda c: hashlib.sha256(f"{seed}/{c.image_id}".encode()).hexdigest())[:number]


class SampleNoise:
    """z at t = 1 and the noise of every step for a list of samples, each from a generator of its own. Steps must come in order."""

    def __init__(self, seed: int, names: Sequence[str], shape: tuple[int, int, int], device: torch.device | str = "cpu") -> None:
        self._generators = [sample_generator(seed, name) for name in names]
        self._shape, self._device = shape, device

    def draw(self) -> Float[Tensor, "b c h w"]:
        """The next standard normal of every sample."""
        return torch.stack([torch.randn(self._shape, generator=g) for g in self._generators]).to(self._device)

    def __call__(self, step_index: int) -> Tensor:
        return self.draw()


@dataclass(frozen=True)
class SampleStep(Step):
    """What a callback of a drawing is given: a sampler's Step for some of the samples, and which ones.

    Row i of z and x_hat is sample `samples[i]` of all samples of the drawing, named `names[i]`, the key of its noise.
    """

    samples: range
    names: tuple[str, ...]


SampleCallback = Callable[[SampleStep], Tensor]
"""SampleStep -> the z to go on with: `step.z` to watch only, another tensor of its shape to edit."""


@dataclass(frozen=True)
class Chunk:
    """Some samples of a drawing, which are drawn together: rows `samples` of all, named `names`, and the Denoise of these rows."""

    model: Model
    config: GenerateConfig
    samples: range
    names: tuple[str, ...]
    denoise: Denoise

    def noise(self, purpose: str = "") -> SampleNoise:
        """The noise of these samples; with a purpose, noise beside it, which takes nothing from the sampler's."""
        names = [f"{name}/{purpose}" for name in self.names] if purpose else self.names
        return SampleNoise(self.config.seed, names, self.model.shape, self.model.device)

    def told(self, callback: SampleCallback) -> Callback:
        """The callback of a sampler that tells `callback` which samples it gets."""
        return lambda step: callback(SampleStep(**vars(step), samples=self.samples, names=self.names))

    def sample(
        self, z: Float[Tensor, "b c h w"], noise: Noise, callback: Callback | None = None, levels: Levels | None = None
    ) -> Float[Tensor, "b c h w"]:
        """x from z by the sampler of the drawing, over its own levels or those given."""
        return sample(self.denoise, z, self.model.schedule, noise, self.config.sampler, callback, levels)


def in_sample_chunks(
    model: Model,
    cond: Conditioning,
    names: Sequence[str],
    guidance: float,
    config: GenerateConfig,
    method: Callable[[Chunk], Tensor],
    max_rows: int | None = None,
) -> Tensor:
    """What `method` returns for the samples, one row for each row of `cond`, at guidance weight w = `guidance`.

    Of `config` it reads sampler, beyond and seed. max_rows: rows that the network computes at once; None: as many as fit in memory.
    The samples are drawn in chunks of that size, one chunk after the other. When the device runs out of memory, `method` is called
    again for the chunk, in two halves.
    """

    def draw(start: int, end: int) -> Tensor:
        denoise = model.bind(cond[start:end], guidance, config.beyond)
        return method(Chunk(model, config, range(start, end), tuple(names[start:end]), denoise)).cpu()

    rows = model.rows_that_fit() if max_rows is None else max_rows
    per_picture = rows_per_picture(cond, guidance, config.beyond, model.network.config.signals)
    with torch.no_grad():
        return in_chunks(draw, len(names), max(1, rows // per_picture))


def sample_pictures(
    model: Model,
    cond: Conditioning,
    names: Sequence[str],
    guidance: float,
    config: GenerateConfig,
    max_rows: int | None = None,
    callback: SampleCallback | None = None,
) -> UInt8[Tensor, "b c h w"]:
    """One picture (uint8) for each row of `cond`, named by `names`, at guidance weight w = `guidance`.

    The samples are drawn by `in_sample_chunks`; no picture depends on max_rows, except for rounding. `callback` is called after
    every step but the last of each chunk with the chunk's samples; when the device runs out of memory, it sees the chunk again from
    step 0, in two halves.
    """

    def whole_run(chunk: Chunk) -> Tensor:
        noise = chunk.noise()
        return to_pixels(chunk.sample(noise.draw(), noise, None if callback is None else chunk.told(callback)))

    return in_sample_chunks(model, cond, names, guidance, config, whole_run, max_rows)


def to_pixels(x: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """[-1, 1] as uint8, rounded; values outside are clipped."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def png_bytes(pixels: UInt8[Tensor, "3 h w"] | UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A picture as PNG."""
    array = pixels.permute(1, 2, 0).numpy() if isinstance(pixels, Tensor) else pixels
    stream = io.BytesIO()
    Image.fromarray(array, "RGB").save(stream, "PNG")
    return stream.getvalue()
