"""What the applications share: a user's pictures, masks and settings in, samples in chunks out.

A method of drawing is a function of a `Chunk`. `Drawing` calls it for as many samples as fit in memory, and gives it the rows of
the pictures that belong to the chunk. Noise is keyed by sample, so that no sample depends on its chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from semantica.conditioning.values import Conditioning
from semantica.config import require
from semantica.diffusion.samplers import Callback, Levels, levels_from, levels_of
from semantica.diffusion.schedule import logsnr
from semantica.diffusion.settings import GuidanceConfig, SamplerConfig
from semantica.errors import ConfigError, DataError
from semantica.generation.conditioning_images import Picture, pixels_name, rows_of, square_of
from semantica.generation.generate import Chunk, SampleCallback, SampleNoise, in_sample_chunks, to_pixels
from semantica.generation.pipeline import Semantica, pil_pictures
from semantica.generation.settings import GenerateConfig

_EXIF_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class Latent:
    """The bipartite latent of B pictures (Ramesh 2022, section 3): what the encoder says of them, and the z at t = 1 of each.

    guidance, sampler, beyond: the settings with which the pictures come back from z. names: they key the noise of edits.
    """

    cond: Conditioning
    z: Float[Tensor, "b c h w"]
    names: list[str]
    guidance: float
    sampler: SamplerConfig
    beyond: GuidanceConfig

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Latent:
        """The latent of one of the pictures."""
        row = torch.tensor([range(len(self))[index]])
        return replace(self, cond=self.cond[row], z=self.z[row], names=[self.names[index]])


Given: TypeAlias = Picture | Tensor
"""One picture: a PIL picture, a path, or x (3, H, W) in [-1, 1] at the resolution of the model."""

Mask: TypeAlias = Image.Image | str | Path | Tensor
"""One mask, as large as its picture: a PIL picture or a path, white from 128; or a tensor (H, W), white from 0.5."""

Like: TypeAlias = Picture | Sequence[Any] | Latent | None
"""The conditioning images: one for all pictures, or one item per picture (for one picture, all items are its conditioning images);
those of a Latent; or None, which draws without a conditioning image and hence without guidance by it."""


class Settings(TypedDict, total=False):
    """How samples are drawn, as in `model(images, …)`: guidance 0.5, the release's sampler and steps, seed 0 unless given."""

    guidance: float | int
    similarity: float | int | None
    num_steps: int | None
    sampler: str | SamplerConfig | None
    seed: int
    beyond: GuidanceConfig
    signals: Mapping[str, Tensor] | None


class StepSettings(Settings, total=False):
    """The same, and a callback of every step but the last. It gets the z that the application leaves."""

    callback: SampleCallback | None


class SampleSettings(StepSettings, total=False):
    """The same, the number of samples per picture (1 unless given), and z at t = 1 in place of drawn noise, one per sample."""

    num_samples: int
    noise: Latent | Tensor | None


@dataclass(frozen=True)
class Drawing:
    """num_samples samples for each of B pictures. Row k of cond and names belongs to picture `k // num_samples`."""

    model: Semantica
    cond: Conditioning
    names: list[str]
    guidance: float
    config: GenerateConfig
    num_samples: int = 1
    callback: SampleCallback | None = None
    z: Float[Tensor, "b c h w"] | None = None

    @classmethod
    def of(cls, model: Semantica, cond: Conditioning, names: Sequence[str], settings: Mapping[str, Any]) -> Drawing:
        """The drawing for the pictures `names` under `cond`, with the settings of a SampleSettings. Raises ConfigError."""
        unknown = settings.keys() - SampleSettings.__annotations__.keys()
        if unknown:
            raise TypeError(f"unexpected keyword {sorted(unknown)[0]!r}; known are {', '.join(SampleSettings.__annotations__)}")
        guidance, num_samples = settings.get("guidance", 0.5), settings.get("num_samples", 1)
        require(math.isfinite(guidance) and guidance >= 0, "guidance", "0 or more", guidance)
        require(num_samples >= 1, "num_samples", "at least 1", num_samples)
        sampler = model.sampler(settings.get("sampler"), settings.get("num_steps"))
        beyond = settings.get("beyond", GuidanceConfig())
        cond = model.told(cond, settings.get("similarity"), settings.get("signals"))
        is_told = any(bool(cond.has(name).any()) for name, values in cond.signals.items() if values.is_guided)
        z = settings.get("noise")
        z = z.z if isinstance(z, Latent) else z
        shape = (len(names) * num_samples, *model.model.shape)
        if z is not None:
            require(z.shape == shape, "noise", f"one z per sample, shape {shape}", tuple(z.shape))
        return cls(
            model,
            cond[torch.arange(len(names)).repeat_interleave(num_samples)],
            [f"{name}/{index}" for name in names for index in range(num_samples)],
            float(guidance) if is_told else 0.0,  # both branches of guidance are the same
            GenerateConfig(guidance=(float(guidance),), sampler=sampler, beyond=beyond, seed=settings.get("seed", 0)),
            num_samples,
            settings.get("callback"),
            z,
        )

    def rows(self, values: Tensor, chunk: Chunk) -> Tensor:
        """The rows of a chunk, on its device, of a tensor with one row per picture."""
        return values.repeat_interleave(self.num_samples, 0)[chunk.samples.start : chunk.samples.stop].to(chunk.model.device)

    def first(self, chunk: Chunk, noise: SampleNoise) -> Float[Tensor, "b c h w"]:
        """z at t = 1: drawn, or as given. Either way the sampler's later noise is the same."""
        drawn = noise.draw()
        return drawn if self.z is None else self.z[chunk.samples.start : chunk.samples.stop].to(drawn)

    def after(self, edit: Callback | None, chunk: Chunk) -> Callback | None:
        """The callback of a sampler that lets `edit` change z first, then the user's callback."""
        if self.callback is None:
            return edit
        told = chunk.told(self.callback)
        return told if edit is None else lambda step: told(replace(step, z=edit(step)))

    def levels(self, start: float | int = 1) -> Levels:
        """The levels of the sampler from the noise level `start`; 1 are those of a whole run."""
        schedule = self.model.release.schedule
        whole = levels_of(self.config.sampler, schedule)
        return whole if start == 1 else levels_from(whole, level_of(start, self.model))

    def tensors(self, method: Callable[[Chunk], Tensor]) -> Tensor:
        """What `method` returns for every sample, on the CPU."""
        if not self.names:
            return torch.empty(0, *self.model.model.shape)
        return in_sample_chunks(self.model.model, self.cond, self.names, self.guidance, self.config, method)

    def pictures(self, method: Callable[[Chunk], Tensor]) -> list[list[Image.Image]]:
        """The samples x of `method` as PIL pictures, one list per picture."""
        drawn = pil_pictures(to_pixels(self.tensors(method)))
        return [drawn[i : i + self.num_samples] for i in range(0, len(drawn), self.num_samples)]


def level_of(strength: float | int, model: Semantica) -> float:
    """The logsnr of a noise level in [0, 1]: that of the schedule at t = strength, whatever the sampler and its spacing."""
    return logsnr(torch.tensor(strength, dtype=torch.float64), model.release.schedule).item()


def conditioning_of(model: Semantica, like: Like, x: Float[Tensor, "b c h w"], is_single: bool) -> tuple[Conditioning, list[str]]:
    """The conditioning of each of the pictures x, and the name that keys its noise: that of its conditioning images, or its own."""
    num = len(x)
    if like is None:
        return model.conditioning.null(num), [pixels_name([row]) for row in x]
    if isinstance(like, Latent):
        cond, names = like.cond, like.names
    else:
        rows, is_one = rows_of(like)
        cond, names = model.conditioning([[picture for row in rows for picture in row]] if is_single and not is_one else rows)
    if len(names) == 1:
        return cond[torch.zeros(num, dtype=torch.long)], names * num
    if len(names) != num:
        raise DataError(f"like: expected conditioning images for 1 or all of the {num} pictures, got {len(names)}")
    return cond, names


# Pictures and masks


def several(given: object) -> tuple[list[Any], bool]:
    """(pictures or masks as a list, whether it was one and not a list)."""
    return (list(given), False) if isinstance(given, (list, tuple)) else ([given], True)


def pictures_of(model: Semantica, given: Sequence[Any], what: str) -> Float[Tensor, "b c h w"]:
    """x in [-1, 1] of pictures: their middle squares at the resolution of the model. Raises DataError, which begins with `what`."""
    shape = model.model.shape
    rows = []
    for picture in given:
        if isinstance(picture, Tensor):
            if picture.shape != shape or not picture.is_floating_point():
                raise DataError(f"{what}: expected x of shape {shape} in [-1, 1], got {picture.dtype} {tuple(picture.shape)}")
            rows.append(picture.cpu().float())
            continue
        try:
            rows.append(square_of(picture, shape[-1]) / 127.5 - 1)
        except DataError as error:
            raise DataError(f"{what}: {str(error).removeprefix('images: ')}") from None
        if rows[-1].shape != shape:
            raise DataError(f"{what}: this model draws no RGB pictures but {shape}; give a tensor of that shape")
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def size_of(picture: Given) -> tuple[int, int]:
    """(width, height) of a picture that can be read, upright."""
    if isinstance(picture, Tensor):
        return picture.shape[-1], picture.shape[-2]
    if not isinstance(picture, Image.Image):
        with Image.open(Path(picture).expanduser()) as opened:
            return size_of(opened)
    turned = picture.getexif().get(_EXIF_ORIENTATION) in _TURNED
    return (picture.height, picture.width) if turned else picture.size


def masks_of(masks: object, pictures: Sequence[Given], side: int, what: str) -> Bool[Tensor, "b 1 h w"]:
    """Where each picture's mask is white, in the square that `pictures_of` takes. A pixel is white if any part of it is.

    One mask is for all pictures. Raises DataError for masks of another number or size than the pictures.
    """
    given, is_one = several(masks)
    given = given * len(pictures) if is_one else given
    if len(given) != len(pictures):
        raise DataError(f"{what}: expected one mask or one per picture, {len(pictures)}, got {len(given)}")
    squares = [_white(mask, size_of(picture), side, what) for mask, picture in zip(given, pictures, strict=True)]
    return torch.stack(squares) if squares else torch.zeros(0, 1, side, side, dtype=torch.bool)


def _white(mask: object, size: tuple[int, int], side: int, what: str) -> Bool[Tensor, "1 h w"]:
    if isinstance(mask, Tensor):
        white = mask >= 0.5 if mask.is_floating_point() else mask > 0
    elif isinstance(mask, (Image.Image, str, Path)):
        try:
            opened = mask if isinstance(mask, Image.Image) else Image.open(Path(mask).expanduser())
            white = torch.from_numpy(np.array(opened.convert("L")) >= 128)
        except (OSError, SyntaxError) as error:
            raise DataError(f"{what}: the mask {mask} cannot be read ({error})") from None
    else:
        raise DataError(f"{what}: expected a PIL picture, a path or a tensor (H, W), got {type(mask).__name__}")
    if white.shape != (size[1], size[0]):
        got = "x".join(map(str, reversed(white.shape)))
        raise DataError(f"{what}: the mask is {got}, but its picture is {size[0]}x{size[1]}; make both of one size")
    short = min(size)
    left, top = (size[0] - short) // 2, (size[1] - short) // 2
    square = white[top : top + short, left : left + short].cpu().float()
    return F.adaptive_max_pool2d(square[None], side) > 0


def check_level(value: float | int, field: str) -> None:
    """Raises ConfigError for a noise level outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{field} must be a noise level in [0, 1], got {value!r}")
