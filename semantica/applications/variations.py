"""Variations of a picture and pictures between two (DALL-E 2: Ramesh 2022, arXiv 2204.06125, sections 3.1 and 3.2).

A variation keeps what the encoder says of a picture and changes z. An interpolation goes from what the encoder says of one picture
to what it says of another; z stays or goes along. Both go on the sphere (slerp), since a mean of two normal vectors is too short.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Unpack

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from semantica.applications.drawing import Drawing, Latent, SampleSettings, StepSettings
from semantica.applications.inversion import refuse, settings_of
from semantica.conditioning.signals import IMAGES
from semantica.conditioning.values import Conditioning
from semantica.config import require
from semantica.errors import DataError
from semantica.generation.conditioning_images import Picture, rows_of
from semantica.generation.generate import Chunk, SampleNoise
from semantica.generation.pipeline import Semantica


def slerp(a: Float[Tensor, "*rows d"], b: Float[Tensor, "*rows d"], share: float | int) -> Float[Tensor, "*rows d"]:
    """The vectors at `share` of the way from a to b along the arc between them; exactly a at 0 and b at 1.

    The angle is that of the whole vectors, by their dot product (Shoemake 1985). Vectors on one line have no arc: they are mixed.
    """
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)[..., None].clamp(-1, 1)
    angle = torch.acos(cosine)
    on_a_line = angle.sin() < 1e-6
    sine = torch.where(on_a_line, 1.0, angle.sin())
    of_a = torch.where(on_a_line, 1 - share, ((1 - share) * angle).sin() / sine)
    of_b = torch.where(on_a_line, share, (share * angle).sin() / sine)
    return (of_a * a + of_b * b).to(a.dtype)


def vary(
    model: Semantica, picture: Picture | Latent, spread: float | int = 1.0, **settings: Unpack[SampleSettings]
) -> list[Image.Image]:
    """Samples (4 unless num_samples is given) with the meaning of the picture: what the encoder says of it, and other noise.

    picture: a picture, of which `model(picture)` are the variations; or its latent, for variations near to it. spread: how far z
    goes from the latent's z to new noise, along the arc: 0 is the picture that the latent renders, 1 is new noise.
    """
    require(0 <= spread <= 1, "spread", "in [0, 1]", spread)
    settings = {"num_samples": 4, **settings}
    if isinstance(picture, Latent):
        if len(picture) != 1:
            raise DataError(f"picture: expected the latent of one picture, got {len(picture)}; take latent[0]")
        own: Tensor | None = picture.z
        drawing = Drawing.of(model, picture.cond, picture.names, {**settings_of(picture), **settings})
    else:
        own = None
        require(spread == 1, "spread", "1 for a picture without a latent; give model.invert(picture)", spread)
        drawing = Drawing.of(model, *model.conditioning([[picture]]), settings)

    def method(chunk: Chunk) -> Tensor:
        noise = chunk.noise()
        z = drawing.first(chunk, noise)
        if own is not None:
            z = slerp(drawing.rows(own, chunk).flatten(1), z.flatten(1), spread).view_as(z)
        return chunk.sample(z, noise, drawing.after(None, chunk))

    return drawing.pictures(method)[0]


def interpolate(
    model: Semantica,
    a: Picture | Latent,
    b: Picture | Latent,
    num: int = 9,
    noise: Literal["fixed", "slerped"] = "fixed",
    **settings: Unpack[StepSettings],
) -> list[Image.Image]:
    """num pictures from one with the meaning of a to one with the meaning of b.

    The pooled embeddings are slerped as whole vectors, and the tokens one by one: token i of a towards token i of b, which look at
    the same place of their pictures. noise: "fixed", all from the z of a; "slerped", from the z of a to the z of b. A picture's z
    is the noise of `model(picture)`'s first sample, a latent's z its own, so that two latents begin and end with their pictures.
    """
    require(num >= 2, "num", "at least 2", num)
    require(noise in ("fixed", "slerped"), "noise", "fixed or slerped", noise)
    refuse(settings, ("num_samples", "signals"), "interpolate")
    (cond_a, name_a, z_a), (cond_b, _, z_b) = _end(model, a, settings.get("seed", 0)), _end(model, b, settings.get("seed", 0))
    shares = [index / (num - 1) for index in range(num)]
    cond = Conditioning.cat([slerped(cond_a, cond_b, share) for share in shares])
    between = [z_a if noise == "fixed" else slerp(z_a.flatten(1), z_b.flatten(1), share).view_as(z_a) for share in shares]
    latent = next((end for end in (a, b) if isinstance(end, Latent)), None)
    drawing = Drawing.of(model, cond, [name_a] * num, settings if latent is None else {**settings_of(latent), **settings})
    drawing = replace(drawing, z=torch.cat(between))

    def method(chunk: Chunk) -> Tensor:
        noise = chunk.noise()
        return chunk.sample(drawing.first(chunk, noise), noise, drawing.after(None, chunk))

    return [row for (row,) in drawing.pictures(method)]


def slerped(a: Conditioning, b: Conditioning, share: float | int) -> Conditioning:
    """The conditioning of a with its images' tokens and pooled embeddings at `share` of the way to those of b."""
    if not torch.equal(a.present, b.present):
        raise DataError("interpolate: both ends must have the same number of conditioning images")
    images = a.signals[IMAGES]
    tensors = {name: slerp(values, b.signals[IMAGES].tensors[name], share) for name, values in images.tensors.items()}
    return a.told(IMAGES, replace(images, tensors=tensors))


def _end(model: Semantica, end: Picture | Latent, seed: int) -> tuple[Conditioning, str, Tensor]:
    if isinstance(end, Latent):
        if len(end) != 1:
            raise DataError(f"interpolate: expected the latent of one picture, got {len(end)}; take latent[0]")
        return end.cond, end.names[0], end.z
    cond, (name,) = model.conditioning(rows_of([end])[0])
    return cond, name, SampleNoise(seed, [f"{name}/0"], model.model.shape).draw()
