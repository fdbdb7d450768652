"""Classifier-free guidance: the conditioning and the guidance weight in, one `Denoise` of the guided x_hat out.

Plain guidance is the paper's; above w = 1 it over-saturates. `GuidanceConfig` holds what the field does against that, each
refinement off by default, and the guidance of a requested similarity, which is on by default and does nothing where no similarity
is requested. Each is a function of its own here. `guided` composes them in one order: a requested similarity is strengthened, the
update is projected, the sum rescaled, the interval chosen, the result thresholded; then the sampler clips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from semantica.conditioning.signals import Signal
from semantica.conditioning.values import Conditioning
from semantica.diffusion.process import Bind, Denoise, LogSNR, Pictures
from semantica.diffusion.settings import GuidanceConfig

PIXELS = (1, 2, 3)


def guided(
    bind: Bind,
    cond: Conditioning,
    w: float,
    config: GuidanceConfig = GuidanceConfig(),  # noqa: B008 - it is frozen
    signals: Sequence[Signal] = (),
) -> Denoise:
    """The Denoise of (1 + w) conditional - w unconditional, refined as `config` says. w = 0 is the conditional model, bit for bit.

    "Conditional" includes what `strengthened` adds for the similarity and for the declared `signals`. Each step is one call of the
    network with `rows_per_picture` rows per picture. Nothing is clipped here: the sampler clips once, after the branches are
    combined. At fixed z the maps between x, eps and v are affine with weights that sum alike, so any of them may be combined.

    `config.threshold` applies for w = 0 and outside the interval too; it leaves x_hat in [-1, 1], where the sampler's clip changes
    nothing. With an interval, each step asks the device which of its rows lie inside. With momentum, the Denoise keeps the last
    step's update; a row whose logsnr has not risen since then begins a new run, without momentum.
    """
    weights = config.weights_of(signals)
    whole = strengthened(bind, cond, weights) if w == 0 else _combined(bind, cond, w, config, weights)
    return whole if config.threshold is None else thresholded(whole, config.threshold)


def rows_per_picture(cond: Conditioning, w: float, config: GuidanceConfig, signals: Sequence[Signal] = ()) -> int:
    """How many rows the network computes per picture and step, at most: one per branch of `guided`."""
    return 1 + (w != 0) + sum(weight != 0 and bool(cond.has(name).any()) for name, weight in config.weights_of(signals).items())


def _combined(bind: Bind, cond: Conditioning, w: float, config: GuidanceConfig, weights: Mapping[str, float]) -> Denoise:
    both_branches = strengthened(bind, cond.and_null(), weights)
    alone = None if config.interval is None else strengthened(bind, cond, weights)
    momentum = _Momentum(config.momentum)
    plain = config.parallel == 1 and config.max_norm is None and config.momentum == 0

    def combine(conditional: Tensor, unconditional: Tensor, logsnr: Tensor) -> Tensor:
        if plain:
            x_hat = (1 + w) * conditional - w * unconditional
        else:
            update = momentum(conditional - unconditional, logsnr)
            x_hat = conditional + w * projected(shortened(update, config.max_norm), conditional, config.parallel)
        return rescaled(x_hat, conditional, config.rescale)

    def combined(z: Pictures, logsnr: LogSNR) -> Pictures:
        inside = None
        if config.interval is not None and alone is not None:
            inside = (logsnr >= config.interval[0]) & (logsnr <= config.interval[1])
            if not inside.any():
                return alone(z, logsnr)
        conditional, unconditional = both_branches(torch.cat([z, z]), torch.cat([logsnr, logsnr])).chunk(2)
        x_hat = combine(conditional, unconditional, logsnr)
        return x_hat if inside is None else torch.where(inside[:, None, None, None], x_hat, conditional)

    return combined


def strengthened(bind: Bind, cond: Conditioning, weights: Mapping[str, float]) -> Denoise:
    """The Denoise of x_hat + Σ weight · (x_hat - x_hat without that signal), over the signals in `weights` that a row has.

    This guides by one signal alone, as w guides by all of them together, where the images have most of the say. Under `guided`,
    a similarity gives unconditional + (1 + w) · (images only - unconditional) + (1 + w) (1 + weight) · (both - images only),
    the two scales of InstructPix2Pix (Brooks 2023, eq. 3). Each signal costs one row more per row that has it, in the same call
    of the network. Rows that have none of the signals are left alone.
    """
    told = {name: cond.has(name).nonzero().squeeze(1) for name, weight in weights.items() if weight != 0}
    told = {name: rows for name, rows in told.items() if len(rows)}
    if not told:
        return bind(cond)
    num, sizes = len(cond), [len(rows) for rows in told.values()]
    device = cond.present.device
    lacks = torch.cat([torch.full((size,), index, device=device) for index, size in enumerate([num, *sizes])])
    without = {name: lacks == index for index, name in enumerate(told, start=1)}
    denoise = bind(cond[torch.cat([torch.arange(num, device=device), *told.values()])].dropped(without))

    def denoise_strengthened(z: Pictures, logsnr: LogSNR) -> Pictures:
        rows, levels = ([tensor, *(tensor[rows] for rows in told.values())] for tensor in (z, logsnr))
        every = denoise(torch.cat(rows), torch.cat(levels))
        whole, start = every[:num], num
        x_hat = whole
        for name, which in told.items():
            lacking = every[start : start + len(which)]
            x_hat, start = x_hat.index_add(0, which, whole[which] - lacking, alpha=weights[name]), start + len(which)
        return x_hat

    return denoise_strengthened


class _Momentum:
    """update + momentum · (what this returned at the step before), for each row (Sadat 2024).

    A row whose logsnr has not risen begins a new run: nothing is added to its update.
    """

    def __init__(self, momentum: float) -> None:
        self._momentum = momentum
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, update: Tensor, logsnr: Tensor) -> Tensor:
        if self._momentum == 0:
            return update
        if self._last is not None:
            before, logsnr_before = self._last
            same_run = (logsnr > logsnr_before)[:, None, None, None]
            update = update + torch.where(same_run, self._momentum * before, 0)
        self._last = update, logsnr
        return update


def shortened(update: Pictures, max_norm: float | None) -> Pictures:
    """The update, shortened where its L2 norm over the picture exceeds max_norm (Sadat 2024)."""
    if max_norm is None:
        return update
    return update * (max_norm / update.square().sum(PIXELS, keepdim=True).sqrt()).clamp(max=1)


def projected(update: Pictures, conditional: Pictures, parallel: float) -> Pictures:
    """The update, with its part along the conditional x_hat multiplied by `parallel` (Sadat 2024).

    The part along x_hat scales the picture, which saturates it; the part across it moves the picture towards the condition.
    """
    if parallel == 1:
        return update
    length = conditional.square().sum(PIXELS, keepdim=True).clamp_min(torch.finfo(conditional.dtype).tiny)
    along = (update * conditional).sum(PIXELS, keepdim=True) / length * conditional
    return update - (1 - parallel) * along


def rescaled(x_hat: Pictures, conditional: Pictures, phi: float) -> Pictures:
    """phi x_hat · std(conditional) / std(x_hat) + (1 - phi) x_hat, std over each picture (Lin 2023, section 3.4).

    The std is that of x_hat, the picture's contrast; Lin takes that of the network's output [C].
    """
    if phi == 0:
        return x_hat
    std = x_hat.std(PIXELS, keepdim=True)
    factor = torch.where(std > 0, conditional.std(PIXELS, keepdim=True) / std, 1)
    return phi * (x_hat * factor) + (1 - phi) * x_hat


def thresholded(denoise: Denoise, quantile: float) -> Denoise:
    """Dynamic thresholding: x_hat clipped to [-s, s] and divided by s = max(1, quantile of |x_hat|) (Saharia 2022, 2.3).

    A picture of which at least that share of the pixels lies in [-1, 1] is only clipped.
    """

    def denoise_thresholded(z: Pictures, logsnr: LogSNR) -> Pictures:
        x_hat = denoise(z, logsnr)
        size = x_hat.abs().flatten(1)
        # Not torch.quantile, which refuses more than 2^24 elements: 85 pictures of 256 px.
        s = size.kthvalue(math.ceil(quantile * size.shape[1]), dim=1).values.clamp(min=1)[:, None, None, None]
        return x_hat.clamp(-s, s) / s

    return denoise_thresholded
