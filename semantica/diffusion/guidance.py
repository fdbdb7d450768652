"""Classifier-free guidance: a Denoise in, a Denoise out. It wraps the network's Denoise and is handed to a sampler."""

from __future__ import annotations

import torch

from semantica.conditioning import Conditioning
from semantica.diffusion.process import Denoise, LogSNR, Pictures


def guided(denoise: Denoise, w: float) -> Denoise:
    """(1 + w) conditional - w unconditional. w = 0 is none: the conditional model itself, at the cost of one call of B rows.

    Otherwise one call of 2 B rows. Nothing is clipped here: the sampler clips once, after the branches are combined. At fixed z
    the maps between x, eps and v are affine with weights that sum alike, so it does not matter which of them is combined.
    """
    if w == 0:
        return denoise

    def combined(z: Pictures, logsnr: LogSNR, cond: Conditioning) -> Pictures:
        conditional, unconditional = denoise(torch.cat([z, z]), torch.cat([logsnr, logsnr]), _both_branches(cond)).chunk(2)
        return (1 + w) * conditional - w * unconditional

    return combined


def _both_branches(cond: Conditioning) -> Conditioning:
    null = cond.null()
    return Conditioning(
        torch.cat([cond.tokens, null.tokens]), torch.cat([cond.pooled, null.pooled]), torch.cat([cond.is_null, null.is_null])
    )
