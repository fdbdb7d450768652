"""What the denoiser sees in a picture: the outputs of its blocks at some noise levels (Baranchuk 2022, arXiv 2112.03126, 3).

A network that can denoise a picture knows which pixels belong together. Its features at each pixel let a small classifier segment
pictures from a few labelled ones. With `at` only the pixels that are asked for are kept, so that memory does not grow with the
resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from semantica.applications.drawing import Given, Like, check_level, conditioning_of, level_of, pictures_of, several
from semantica.config import require
from semantica.diffusion.process import diffuse
from semantica.errors import DataError
from semantica.generation.generate import SampleNoise
from semantica.generation.model import in_chunks
from semantica.generation.pipeline import Semantica

LEVELS = (0.1, 0.25, 0.4)


def features(
    model: Semantica,
    pictures: Given | Sequence[Given],
    like: Like = None,
    levels: Sequence[float | int] = LEVELS,
    blocks: Sequence[int] | None = None,
    at: Int[Tensor, "b k"] | None = None,
    seed: int = 0,
) -> Float[Tensor, "b c h w"] | Float[Tensor, "b c k"]:
    """The features of one or several pictures at every pixel of the model's resolution, float32 on the CPU.

    The output of each block is enlarged bilinearly. Channels: those of the first level, block by block, then of the next. levels:
    noise levels in [0, 1]. blocks: which blocks, 0 is the first of the lowest stage and the last ones are the finest; None is all.
    at: pixels of each picture, as row times side plus column, whose features alone are kept. like: the conditioning image; None is
    none. All pictures get the same noise, which depends on the seed and the level, as in the authors' code.
    """
    require(len(levels) > 0, "levels", "at least one noise level", tuple(levels))
    for level in levels:
        check_level(level, "levels")
    given, is_single = several(pictures)
    x = pictures_of(model, given, "pictures")
    drawn, side = model.model, x.shape[-1]
    if at is not None and (at.dim() != 2 or len(at) != len(x) or (at.numel() > 0 and not 0 <= at.min() <= at.max() < side**2)):
        raise DataError(f"at: expected pixels 0 to {side**2 - 1} for each of {len(x)} pictures, got shape {tuple(at.shape)}")
    cond, _ = conditioning_of(model, like, x, is_single)
    network, num = drawn.network, sum(len(stage.blocks) for stage in [drawn.network.lowest, *drawn.network.up])
    chosen = range(num) if blocks is None else blocks
    require(len(chosen) > 0 and all(0 <= block < num for block in chosen), "blocks", f"numbers from 0 to {num - 1}", blocks)
    noises = [SampleNoise(seed, [f"features/{level:g}"], drawn.shape).draw() for level in levels]

    def seen(start: int, end: int) -> Tensor:
        rows, prepared = x[start:end].to(drawn.device), network.prepare(cond[start:end].to(drawn.device))
        places = None if at is None else at[start:end].to(drawn.device)
        parts = []
        for level, eps in zip(levels, noises, strict=True):
            logsnr = torch.full((len(rows),), level_of(level, model), device=drawn.device)
            taps: list[Tensor] = []
            network(diffuse(rows, eps.to(rows).expand_as(rows), logsnr), logsnr, prepared, taps)
            parts += [_at(taps[block], side, places).cpu() for block in chosen]
        return torch.cat(parts, 1)

    with torch.no_grad():
        return in_chunks(seen, len(x), max(1, drawn.rows_that_fit() // (4 * len(levels))))


def _at(maps: Tensor, side: int, places: Tensor | None) -> Tensor:
    """Maps enlarged to `side`, or their values at some pixels of that."""
    large = F.interpolate(maps.float(), (side, side), mode="bilinear", align_corners=False)
    if places is None:
        return large
    flat = large.flatten(2)
    return flat.gather(2, places[:, None].expand(-1, flat.shape[1], -1))
