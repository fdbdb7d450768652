"""Inversion: the z at t = 1 from which DDIM draws a given picture, and the picture from that z (Song 2021; Ramesh 2022, section 3).

The conditioning and z together are the bipartite latent of DALL-E 2: the encoder's part holds what the picture means, z the rest.
`ddim_invert` iterates every step to its exact inverse, where other libraries take one iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

from PIL import Image
from torch import Tensor

from semantica.applications.drawing import (
    Drawing,
    Given,
    Latent,
    Like,
    Settings,
    StepSettings,
    conditioning_of,
    pictures_of,
    several,
)
from semantica.config import require
from semantica.diffusion.samplers import ddim_invert
from semantica.errors import ConfigError, DataError
from semantica.generation.generate import Chunk
from semantica.generation.pipeline import Semantica


def invert(
    model: Semantica,
    picture: Given | Sequence[Given],
    like: Like = None,
    num_iterations: int = 10,
    **settings: Unpack[Settings],
) -> Latent:
    """The bipartite latent of one or several pictures. `render` draws the pictures from it.

    Other methods take it as `like` or `noise`, and vary and interpolate in place of a picture. like: the conditioning image; None
    is the picture itself. guidance is 0 unless given: the picture then needs the fewest steps to come back. The sampler is DDIM;
    num_steps as given or as the release says. num_iterations: calls of the network per step; 1 is plain inversion, which does not
    come back exactly.
    """
    require(num_iterations >= 1, "num_iterations", "at least 1", num_iterations)
    refuse(settings, ("callback", "num_samples", "noise"), "invert")
    given, is_single = several(picture)
    x = pictures_of(model, given, "picture")
    if like is None:
        if any(isinstance(item, Tensor) for item in given):
            raise DataError("like: a picture that is a tensor cannot be encoded; give its conditioning image")
        like = given[0] if is_single else given
    cond, names = conditioning_of(model, like, x, is_single)
    drawing = Drawing.of(model, cond, names, {"guidance": 0.0, "sampler": "ddim", **settings})
    sampler = drawing.config.sampler
    if sampler.name != "ddim":
        raise ConfigError(f"sampler: only ddim can be inverted, got {sampler.name}")

    def method(chunk: Chunk) -> Tensor:
        pictures = drawing.rows(x, chunk)
        return ddim_invert(chunk.denoise, pictures, drawing.levels(), clip=sampler.clip, num_iterations=num_iterations)

    return Latent(drawing.cond, drawing.tensors(method), names, drawing.guidance, sampler, drawing.config.beyond)


def render(model: Semantica, latent: Latent, like: Like = None, **settings: Unpack[StepSettings]) -> list[Image.Image]:
    """One picture per row of the latent, drawn from its z.

    like: another conditioning image, for the rest of one picture with the meaning of another; None is the latent's own. guidance,
    sampler and beyond are those of the inversion unless given.
    """
    refuse(settings, ("num_samples", "noise"), "render")
    cond, names = conditioning_of(model, latent if like is None else like, latent.z, len(latent) == 1)
    drawing = replace(Drawing.of(model, cond, names, settings_of(latent) | settings), z=latent.z)

    def method(chunk: Chunk) -> Tensor:
        noise = chunk.noise()
        return chunk.sample(drawing.first(chunk, noise), noise, drawing.after(None, chunk))

    return [row for (row,) in drawing.pictures(method)]


def settings_of(latent: Latent) -> StepSettings:
    """The settings with which a latent was made."""
    return {"guidance": latent.guidance, "sampler": latent.sampler, "beyond": latent.beyond}


def refuse(settings: object, names: Sequence[str], method: str) -> None:
    """Raises ConfigError for settings that a method does not take."""
    for name in names:
        if isinstance(settings, dict) and name in settings:
            raise ConfigError(f"{name}: {method} takes no {name}; leave it out")
