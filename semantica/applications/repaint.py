"""Inpainting by replacement, with the resampling of RePaint as an option (Lugmayr 2022, arXiv 2201.09865, algorithm 1).

After every step the known part of z is replaced by the known picture, noised to the level that z has reached (their eq. 8). The
step did not know of the replacement, so the hole need not fit its surroundings. Resampling noises z again by `jump` steps and draws
these steps once more, `resample` times in all, until both parts agree (their section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    conditioning_of,
    masks_of,
    pictures_of,
    several,
)
from semantica.config import require
from semantica.diffusion.process import Pictures, diffuse
from semantica.diffusion.samplers import Callback, Levels, Step
from semantica.diffusion.schedule import alpha_sigma
from semantica.errors import DataError
from semantica.generation.generate import Chunk, SampleNoise
from semantica.generation.pipeline import Semantica


@overload
def inpaint(  # type: ignore[overload-overlap] # a str is a sequence of str too
    model: Semantica,
    picture: Given,
    mask: Mask,
    like: Like = ...,
    resample: int = ...,
    jump: int = ...,
    **settings: Unpack[SampleSettings],
) -> list[Image.Image]: ...


@overload
def inpaint(
    model: Semantica,
    picture: Sequence[Given],
    mask: Mask | Sequence[Mask],
    like: Like = ...,
    resample: int = ...,
    jump: int = ...,
    **settings: Unpack[SampleSettings],
) -> list[list[Image.Image]]: ...


def inpaint(
    model: Semantica,
    picture: object,
    mask: object,
    like: Like = None,
    resample: int = 1,
    jump: int = 10,
    **settings: Unpack[SampleSettings],
) -> list[Image.Image] | list[list[Image.Image]]:
    """The picture with its hole drawn anew: a list, or a list of lists for a list of pictures.

    mask: white where the picture is drawn; the rest comes back unchanged. like: the conditioning image that says what is drawn
    there, `picture` itself included. resample: how often each `jump` steps are drawn, 1 is plain replacement; the authors use 10
    and 10, at ten times the cost.
    """
    require(resample >= 1, "resample", "at least 1", resample)
    require(jump >= 1, "jump", "at least 1", jump)
    given, is_single = several(picture)
    x = pictures_of(model, given, "picture")
    holes = masks_of(mask, given, x.shape[-1], "mask")
    if not holes.flatten(1).any(1).all():
        raise DataError("mask: there is no hole to draw; make the pixels that shall be drawn white")
    drawing = Drawing.of(model, *conditioning_of(model, like, x, is_single), settings)
    levels = drawing.levels()
    num_steps = len(levels) - 1
    length = num_steps if resample == 1 else jump

    def method(chunk: Chunk) -> Tensor:
        known = _Known(drawing.rows(x, chunk), drawing.rows(holes, chunk), chunk.noise("known"))
        noise, back = chunk.noise(), chunk.noise("back")
        z = drawing.first(chunk, noise)
        for first in range(0, num_steps, length):
            last = min(first + length, num_steps)
            callback = drawing.after(known.replaced, chunk)
            for repeat in range(resample):
                if repeat:
                    z = noised_again(z, back.draw(), levels[first], None if last == num_steps else levels[last])
                z = part_of_run(chunk, z, noise, levels, range(first, last), callback)
        return torch.where(known.hole, z, known.x)

    pictures = drawing.pictures(method)
    return pictures[0] if is_single else pictures


@dataclass(frozen=True)
class _Known:
    """The known pictures of a chunk, where they have a hole, and the noise of the known part."""

    x: Pictures
    hole: Tensor
    noise: SampleNoise

    def replaced(self, step: Step) -> Tensor:
        """z with its known part replaced by the noised picture."""
        return torch.where(self.hole, step.z, diffuse(self.x, self.noise.draw(), step.logsnr))


def noised_again(z: Pictures, eps: Pictures, to: Tensor, since: Tensor | None) -> Pictures:
    """z at the level `to`, drawn from q given z at the less noisy level `since`; None: z is x.

    q(z_t | z_s) = N((alpha_t / alpha_s) z_s, c sigma_t²) with c = 1 - exp(logsnr_t - logsnr_s).
    """
    alpha, sigma = alpha_sigma(to.to(z))
    if since is None:
        return alpha * z + sigma * eps
    share = -torch.expm1(to - since).to(z)
    return alpha / alpha_sigma(since.to(z))[0] * z + share.sqrt() * sigma * eps


def part_of_run(chunk: Chunk, z: Pictures, noise: SampleNoise, levels: Levels, steps: range, callback: Callback | None) -> Pictures:
    """z after the steps `steps` of a run over `levels`, begun at z; x where they include the last one.

    A sampler ends a run with the x_hat of its last level. In the middle of a run that x_hat is not needed: z has been seen by the
    callback, and the network is not called for it.
    """
    reached: Tensor | None = None

    def seen(step: Step) -> Tensor:
        nonlocal reached
        step = replace(step, index=steps.start + step.index)
        z = step.z if callback is None else callback(step)
        if step.index == steps.stop - 1:
            reached = z
        return z

    def denoise(z: Pictures, logsnr: Tensor) -> Pictures:
        return z if reached is not None else chunk.denoise(z, logsnr)

    part = replace(chunk, denoise=denoise)
    x = part.sample(z, noise, seen, levels[steps.start : steps.stop + 2])
    return x if reached is None else reached
