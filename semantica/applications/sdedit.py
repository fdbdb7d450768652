"""SDEdit: a picture of strokes, a collage or a photo becomes a sample near it (Meng 2022, arXiv 2108.01073, algorithms 2 and 3).

The guide x is noised to a level, z = alpha x + sigma eps, and the sampler goes on from there. The level decides between faithful to
the guide and realistic. It is a level of the schedule (`strength` is its t) and no number of skipped steps [C], so that a strength
means the same for every sampler, spacing and number of steps, and strength 1 is pure noise, in which nothing of the guide is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, overload

import torch
from PIL import Image
from torch import Tensor

from semantica.applications.drawing import (
    Drawing,
    Given,
    Like,
    Mask,
    SampleSettings,
    check_level,
    conditioning_of,
    level_of,
    masks_of,
    pictures_of,
    several,
)
from semantica.config import require
from semantica.diffusion.process import diffuse
from semantica.diffusion.samplers import Step
from semantica.generation.generate import Chunk
from semantica.generation.pipeline import Semantica


@overload
def edit(  # type: ignore[overload-overlap] # a str is a sequence of str too
    model: Semantica,
    guide: Given,
    like: Like = ...,
    strength: float | int = ...,
    keep: Mask | None = ...,
    repeats: int = ...,
    **settings: Unpack[SampleSettings],
) -> list[Image.Image]: ...


@overload
def edit(
    model: Semantica,
    guide: Sequence[Given],
    like: Like = ...,
    strength: float | int = ...,
    keep: Mask | Sequence[Mask] | None = ...,
    repeats: int = ...,
    **settings: Unpack[SampleSettings],
) -> list[list[Image.Image]]: ...


def edit(
    model: Semantica,
    guide: object,
    like: Like = None,
    strength: float | int = 0.5,
    keep: object = None,
    repeats: int = 1,
    **settings: Unpack[SampleSettings],
) -> list[Image.Image] | list[list[Image.Image]]:
    """Samples near the guide with the meaning of the conditioning image `like`: a list, or a list of lists for a list of guides.

    strength: the noise level at which drawing begins, t of the schedule: 0 returns the guide, 1 is `model(like)`, bit for bit.
    keep: a mask, white where the guide must stay; there z is reset to the noised guide after every step, with the noise of the
    start, as in the authors' code. repeats: the result is the next guide, that many times (their K, 3).
    """
    check_level(strength, "strength")
    require(repeats >= 1, "repeats", "at least 1", repeats)
    given, is_single = several(guide)
    x = pictures_of(model, given, "guide")
    rest = torch.ones(len(x), 1, *x.shape[2:], dtype=torch.bool) if keep is None else ~masks_of(keep, given, x.shape[-1], "keep")
    drawing = Drawing.of(model, *conditioning_of(model, like, x, is_single), settings)
    levels, start = drawing.levels(strength), level_of(strength, model)

    def method(chunk: Chunk) -> Tensor:
        guides, free, noise = drawing.rows(x, chunk), drawing.rows(rest, chunk), chunk.noise()
        if strength == 0:
            return guides
        drawn = guides
        for repeat in range(repeats):
            eps = drawing.first(chunk, noise) if repeat == 0 else noise.draw()
            z = eps if strength == 1 else diffuse(drawn, eps, torch.full((len(eps),), start, device=eps.device))

            def reset(step: Step, eps: Tensor = eps) -> Tensor:
                return torch.where(free, step.z, diffuse(guides, eps, step.logsnr))

            drawn = chunk.sample(z, noise, drawing.after(None if keep is None else reset, chunk), levels)
            drawn = torch.where(free, drawn, guides)
        return drawn

    pictures = drawing.pictures(method)
    return pictures[0] if is_single else pictures
