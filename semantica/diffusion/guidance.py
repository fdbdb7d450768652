"""Classifier-free guidance: a Denoise in, a Denoise out. It wraps the network's Denoise and is handed to a sampler.

Plain guidance is the paper's; over w = 1 it over-saturates. `GuidanceConfig` holds what the field does against that, each piece
off by default, and the guidance of a requested similarity, on by default and nothing where none is requested. Each is a function
of its own here. They compose in one order: what a requested similarity changes is strengthened, the
update is projected, the sum rescaled, the interval chosen, the result thresholded; then the sampler clips.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from semantica.conditioning import Conditioning
from semantica.diffusion.memo import memoised
from semantica.diffusion.process import Denoise, LogSNR, Pictures
from semantica.diffusion.settings import GuidanceConfig
from semantica.signals import SIMILARITY

PIXELS = (1, 2, 3)


def guided(denoise: Denoise, w: float, config: GuidanceConfig = GuidanceConfig()) -> Denoise:  # noqa: B008 - it is frozen
    """(1 + w) conditional - w unconditional, as `config` refines it. w = 0 is none: the conditional model itself, bit for bit.

    Conditional is what `requested` makes of rows that ask for a similarity. w = 0 costs one call of B rows, any other w one call of
    2 B rows; `config.request` one row more for each that asks. Nothing is clipped here: the sampler clips once, after the branches
    are combined. At fixed z the maps between x, eps and v are affine with weights that sum alike, so it does not matter which of
    them is combined.

    `config.threshold` holds for w = 0 and outside the interval too. What it leaves lies in [-1, 1], where the sampler's clip
    changes nothing. With an interval, each step asks the device which of its rows lie inside. With momentum, the Denoise remembers
    the last step of a run; take a new one for a run that begins at a higher logsnr than the last one with this cond ended at.
    """
    if config.request != 0:
        denoise = requested(denoise, config.request)
    whole = denoise if w == 0 else _combined(denoise, w, config)
    return whole if config.threshold is None else thresholded(whole, config.threshold)


def _combined(denoise: Denoise, w: float, config: GuidanceConfig) -> Denoise:
    both_branches = memoised(Conditioning.and_null)
    remembered = _Momentum(config.momentum)
    plain = config.parallel == 1 and config.max_norm is None and config.momentum == 0

    def combine(conditional: Tensor, unconditional: Tensor, logsnr: Tensor, cond: Conditioning) -> Tensor:
        if plain:
            x_hat = (1 + w) * conditional - w * unconditional
        else:
            update = remembered(conditional - unconditional, logsnr, cond)
            x_hat = conditional + w * projected(shortened(update, config.max_norm), conditional, config.parallel)
        return rescaled(x_hat, conditional, config.rescale)

    def combined(z: Pictures, logsnr: LogSNR, cond: Conditioning) -> Pictures:
        inside = None
        if config.interval is not None:
            inside = (logsnr >= config.interval[0]) & (logsnr <= config.interval[1])
            if not inside.any():
                return denoise(z, logsnr, cond)
        conditional, unconditional = denoise(torch.cat([z, z]), torch.cat([logsnr, logsnr]), both_branches(cond)).chunk(2)
        x_hat = combine(conditional, unconditional, logsnr, cond)
        return x_hat if inside is None else torch.where(inside[:, None, None, None], x_hat, conditional)

    return combined


def requested(denoise: Denoise, weight: float) -> Denoise:
    """x_hat + weight · (x_hat - what x_hat would be without a requested similarity), for rows that ask for one.

    Guidance of the request alone, as w is of images and request together, where the images have most of the say. Under `guided`
    the whole is unconditional + (1 + w) · (images only - unconditional) + (1 + w) (1 + weight) · (both - images only): the two
    scales of InstructPix2Pix (Brooks 2023, eq. 3). One call of one row more for each that asks; rows that do not are left alone.
    """

    def with_unasked(cond: Conditioning) -> tuple[Conditioning, Tensor]:
        asks = cond.has(SIMILARITY).nonzero().squeeze(1)
        rows = torch.cat([torch.arange(len(cond), device=asks.device), asks])
        return cond[rows].dropped({SIMILARITY: torch.arange(len(rows), device=asks.device) >= len(cond)}), asks

    rows_of = memoised(with_unasked)

    def denoise_requested(z: Pictures, logsnr: LogSNR, cond: Conditioning) -> Pictures:
        whole, asks = rows_of(cond)
        if len(asks) == 0:
            return denoise(z, logsnr, cond)
        both = denoise(torch.cat([z, z[asks]]), torch.cat([logsnr, logsnr[asks]]), whole)
        x_hat, unasked = both[: len(z)], both[len(z) :]
        return x_hat.index_add(0, asks, x_hat[asks] - unasked, alpha=weight)

    return denoise_requested


class _Momentum:
    """update + momentum · (what this gave for the step before), for every row (Sadat 2024).

    A row starts anew when the conditioning is another object or its logsnr has not risen: another run.
    """

    def __init__(self, momentum: float) -> None:
        self._momentum = momentum
        self._last: tuple[Tensor, Tensor, Conditioning] | None = None

    def __call__(self, update: Tensor, logsnr: Tensor, cond: Conditioning) -> Tensor:
        if self._momentum == 0:
            return update
        if self._last is not None and self._last[2] is cond and self._last[0].shape == update.shape:
            before, logsnr_before, _ = self._last
            same_run = (logsnr > logsnr_before)[:, None, None, None]
            update = update + torch.where(same_run, self._momentum * before, 0)
        self._last = update, logsnr, cond
        return update


def shortened(update: Pictures, max_norm: float | None) -> Pictures:
    """The update, no longer than max_norm in L2 over each picture (Sadat 2024)."""
    if max_norm is None:
        return update
    return update * (max_norm / update.square().sum(PIXELS, keepdim=True).sqrt()).clamp(max=1)


def projected(update: Pictures, conditional: Pictures, parallel: float) -> Pictures:
    """The update with its part along the conditional x_hat times `parallel` (Sadat 2024).

    That part scales the picture, which is what saturates it; the part across it is what moves it towards the condition.
    """
    if parallel == 1:
        return update
    length = conditional.square().sum(PIXELS, keepdim=True).clamp_min(torch.finfo(conditional.dtype).tiny)
    along = (update * conditional).sum(PIXELS, keepdim=True) / length * conditional
    return update - (1 - parallel) * along


def rescaled(x_hat: Pictures, conditional: Pictures, phi: float) -> Pictures:
    """phi x_hat · std(conditional) / std(x_hat) + (1 - phi) x_hat, std over each picture (Lin 2023, section 3.4).

    Of x_hat, whose std is the picture's contrast, where Lin takes that of the network's output [C].
    """
    if phi == 0:
        return x_hat
    std = x_hat.std(PIXELS, keepdim=True)
    factor = torch.where(std > 0, conditional.std(PIXELS, keepdim=True) / std, 1)
    return phi * (x_hat * factor) + (1 - phi) * x_hat


def thresholded(denoise: Denoise, quantile: float) -> Denoise:
    """Dynamic thresholding: x_hat clipped to [-s, s], divided by s, the quantile of its |x_hat| but at least 1 (Saharia 2022, 2.3).

    Pictures within [-1, 1] up to that share of their pixels are only clipped.
    """

    def denoise_thresholded(z: Pictures, logsnr: LogSNR, cond: Conditioning) -> Pictures:
        x_hat = denoise(z, logsnr, cond)
        size = x_hat.abs().flatten(1)
        # Not torch.quantile, which refuses more than 2^24 elements: 85 pictures of 256 px.
        s = size.kthvalue(math.ceil(quantile * size.shape[1]), dim=1).values.clamp(min=1)[:, None, None, None]
        return x_hat.clamp(-s, s) / s

    return denoise_thresholded
