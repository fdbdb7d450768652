"""ILVR: samples that have the low frequencies of a reference picture (Choi 2021, arXiv 2108.02938, algorithm 1).

After every step z <- z - phi(z) + phi(q(reference)), where phi leaves what survives a reduction by a factor N and q noises the
reference to the level that z has reached. (The authors' code noises it to the level before the step.) So the reference decides
the layout, and the conditioning image the meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, overload

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from semantica.applications.drawing import (
    Drawing,
    Given,
    Like,
    SampleSettings,
    check_level,
    conditioning_of,
    level_of,
    pictures_of,
    several,
    size_of,
)
from semantica.config import require
from semantica.diffusion.process import Pictures, diffuse
from semantica.diffusion.samplers import Step
from semantica.errors import DataError
from semantica.generation.generate import Chunk
from semantica.generation.pipeline import Semantica


def low_pass(x: Pictures, factor: int) -> Pictures:
    """phi: x reduced by a factor to means over areas, and enlarged again bicubically. The identity for factor 1."""
    height, width = x.shape[2:]
    small = F.interpolate(x, (height // factor, width // factor), mode="area")
    return F.interpolate(small, (height, width), mode="bicubic")


@overload
def refine(  # type: ignore[overload-overlap] # a str is a sequence of str too
    model: Semantica,
    reference: Given,
    like: Like = ...,
    factor: int = ...,
    until: float | int = ...,
    **settings: Unpack[SampleSettings],
) -> list[Image.Image]: ...


@overload
def refine(
    model: Semantica,
    reference: Sequence[Given],
    like: Like = ...,
    factor: int = ...,
    until: float | int = ...,
    **settings: Unpack[SampleSettings],
) -> list[list[Image.Image]]: ...


def refine(
    model: Semantica,
    reference: object,
    like: Like = None,
    factor: int = 8,
    until: float | int = 0.0,
    **settings: Unpack[SampleSettings],
) -> list[Image.Image] | list[list[Image.Image]]:
    """Samples with the layout of the reference and the meaning of `like`: a list, or a list of lists for a list of references.

    factor: N, by which pictures are reduced: the larger, the less the reference decides. until: the noise level (t of the schedule)
    at which the reference ceases to decide: 0 goes on to the finished picture itself, 1 is `model(like)`, bit for bit.
    """
    check_level(until, "until")
    given, is_single = several(reference)
    x = pictures_of(model, given, "reference")
    require(1 <= factor <= x.shape[-1], "factor", f"1 to the resolution of the model, {x.shape[-1]}", factor)
    for picture in given:
        if min(size_of(picture)) < factor:
            raise DataError(f"reference: {'x'.join(map(str, size_of(picture)))} px is smaller than the factor {factor}")
    drawing = Drawing.of(model, *conditioning_of(model, like, x, is_single), settings)
    end = level_of(until, model)

    def method(chunk: Chunk) -> Tensor:
        references, noise, beside = drawing.rows(x, chunk), chunk.noise(), chunk.noise("reference")

        def match(step: Step) -> Tensor:
            noised = diffuse(references, beside.draw(), step.logsnr)
            matched = step.z - low_pass(step.z, factor) + low_pass(noised, factor)
            return torch.where((step.logsnr < end)[:, None, None, None], matched, step.z)

        drawn = chunk.sample(drawing.first(chunk, noise), noise, drawing.after(match, chunk))
        return drawn - low_pass(drawn, factor) + low_pass(references, factor) if until == 0 else drawn

    pictures = drawing.pictures(method)
    return pictures[0] if is_single else pictures
