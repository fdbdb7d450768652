"""Samplers: a Denoise and z at a high noise level in, x out. A sampler is one function, registered by `@sampler(name)`.

Registered are `ddpm`, the paper's ancestral sampler; `ddim`; and `dpm_solver`, DPM-Solver++(2M). `ddim_invert` goes the other way,
from a picture to its z. The caller gives the levels (logsnr) to visit, z at the first of them and the noise of each step, so that
noise can be keyed by sample and no result depends on how samples are batched or on which worker draws them. `step_levels` makes the
levels of a whole run, t = 1 to t = 0. A run may begin at any level: `ddim(denoise, diffuse(x, eps, levels[k]), levels[k:])` edits
a picture x (SDEdit, Meng 2022).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from semantica.diffusion.process import Denoise, LogSNR, Pictures, v_from_x
from semantica.diffusion.schedule import alpha_sigma, logsnr
from semantica.diffusion.settings import SAMPLERS, SamplerConfig, ScheduleConfig, Spacing
from semantica.errors import ConfigError

Levels = Float[Tensor, " num_steps_and_1"]
"""logsnr, float64 on the host, rising; a step lies between each two. The last step ends without noise, whatever its level says."""

Noise = Callable[[int], Tensor]
"""step index (0 at the first level) -> standard normal, shaped like z."""

F = TypeVar("F", bound=Callable[..., Tensor])
S = TypeVar("S", bound="Step")


@dataclass(frozen=True)
class Step:
    """What a callback is given after step `index`: z at the level `logsnr` (B,) just reached, and the x_hat that led there."""

    index: int
    z: Tensor
    x_hat: Tensor
    logsnr: Tensor


Callback = Callable[[Step], Tensor]
"""Step -> the z to go on with: `step.z` to watch only, another tensor of its shape to edit. Called after every step but the last,
without gradients; a callback or a wrapper of Denoise that needs gradients turns them on for itself."""


def step_levels(schedule: ScheduleConfig, num_steps: int, spacing: Spacing) -> Levels:
    """The levels of a whole run of num_steps steps, from t = 1 to t = 0, equally spaced in t or in logsnr."""
    t = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    if spacing == "t":
        return logsnr(t, schedule)
    return schedule.logsnr_max + t * (schedule.logsnr_min - schedule.logsnr_max)


# The registry


@dataclass(frozen=True)
class Sampler:
    """A registered sampler: its function, its spacing where a SamplerConfig says none, and the keywords that the function takes."""

    run: Callable[..., Pictures]
    spacing: Spacing
    keywords: frozenset[str]


def sampler(name: str, spacing: Spacing = "logsnr") -> Callable[[F], F]:
    """Register a function `(denoise, z, levels, …) -> x` as the sampler `name`, with its spacing where a SamplerConfig says none.

    Beyond the three, the function names what it wants of: `noise`, `callback`, and the fields `clip` and `interpolation` of
    SamplerConfig. A field that a new sampler adds to SamplerConfig is passed on in the same way.
    """

    def register(function: F) -> F:
        keywords = frozenset(list(inspect.signature(function).parameters)[3:])
        assert keywords <= {"noise", "callback", *SamplerConfig.__dataclass_fields__}, f"{name}: unknown keywords in {keywords}"
        SAMPLERS.add(name, Sampler(function, spacing, keywords))
        return function

    return register


def levels_of(config: SamplerConfig, schedule: ScheduleConfig) -> Levels:
    """The levels of a whole run with these settings on that schedule."""
    chosen: Sampler = SAMPLERS[config.name]
    return step_levels(schedule, config.num_steps, config.spacing or chosen.spacing)


def levels_from(levels: Levels, start: float) -> Float[Tensor, " num_later_and_1"]:
    """The levels of a run that begins at the level `start`: `start`, then the levels of the whole run above it.

    The first step is at least half as long as the whole run's step there: DPM-Solver++ extrapolates over it, and a shorter step
    would magnify rounding. At or below the first level, `start` begins the whole run, unchanged.
    """
    if start <= levels[0]:
        return levels
    later = levels[1:][(levels[1:] + levels[:-1]) / 2 > start]
    return torch.cat([levels.new_tensor([start]), later if len(later) else levels[-1:]])


def sample(
    denoise: Denoise,
    z: Pictures,
    schedule: ScheduleConfig,
    noise: Noise,
    config: SamplerConfig,
    callback: Callback | None = None,
    levels: Levels | None = None,
) -> Pictures:
    """x from z, by the sampler that `config` says. A deterministic sampler never calls `noise`.

    z is at the first of `levels`; None are the levels of a whole run with these settings, from t = 1.
    """
    chosen: Sampler = SAMPLERS[config.name]
    given = {**vars(config), "noise": noise, "callback": callback}
    levels = levels_of(config, schedule) if levels is None else levels
    return chosen.run(denoise, z, levels, **{name: given[name] for name in chosen.keywords})


# What samplers share

Rule = Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(index, z, x_hat, logsnr at t, logsnr at s) -> z at s, for every step but the last. Samplers differ in this only."""


@torch.no_grad()
def walk(rule: Rule, denoise: Denoise, z: Pictures, levels: Levels, *, clip: bool, callback: Callback | None) -> Pictures:
    """x after the steps between `levels`, with one call of `denoise` per step; the last step returns its x_hat.

    With `clip`, x_hat is clipped to [-1, 1] at every step. `callback` is called after every step but the last.
    """
    *starts, _ = levels_on_device(levels, z)
    for index, (logsnr_t, logsnr_s) in enumerate(pairwise(starts)):
        x_hat = _predict(denoise, z, logsnr_t, clip)
        z = rule(index, z, x_hat, logsnr_t, logsnr_s)
        if callback is not None:
            z = apply_callback(callback, Step(index, z, x_hat, logsnr_s))
    return _predict(denoise, z, starts[-1], clip)


def levels_on_device(levels: Levels, z: Pictures) -> list[LogSNR]:
    """Each level as (B,) on z's device, in at least float32.

    The levels are exact on the host and sent before the first step, one by one: on a GPU no step waits for a copy, and on XLA they
    are inputs, so that every step is the same program.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    return [level.to(device=z.device, dtype=dtype).expand(len(z)) for level in levels]


def _predict(denoise: Denoise, z: Pictures, logsnr: LogSNR, clip: bool) -> Pictures:
    x_hat = denoise(z, logsnr)
    return x_hat.clamp(-1, 1) if clip else x_hat


def apply_callback(callback: Callable[[S], Tensor], step: S) -> Tensor:
    """The z that the callback returns for a step. Raises ConfigError where it is no tensor of z's shape."""
    z: object = callback(step)
    if not isinstance(z, Tensor) or z.shape != step.z.shape:
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ConfigError(f"callback: must return a z of shape {tuple(step.z.shape)}, got {got}; return step.z to change nothing")
    return z


# DDPM


def ddpm_posterior(
    z: Pictures, x_hat: Pictures, logsnr_t: LogSNR, logsnr_s: LogSNR
) -> tuple[Pictures, Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]:
    """(mean, small variance, large variance) of z at s given z at t and x_hat; logsnr_t < logsnr_s.

    mean = r (alpha_s / alpha_t) z + c alpha_s x_hat, r = exp(logsnr_t - logsnr_s), c = 1 - r; small = c sigma_s², the variance of
    q(z_s | z_t, x); large = c sigma_t², the variance of q(z_t | z_s) (Ho 2020, eq. 6 and 7; Hoogeboom 2023, appendix).
    """
    alpha_t, sigma_t = alpha_sigma(logsnr_t[:, None, None, None])
    alpha_s, sigma_s = alpha_sigma(logsnr_s[:, None, None, None])
    difference = (logsnr_t - logsnr_s)[:, None, None, None]
    c = -torch.expm1(difference)
    mean = difference.exp() * (alpha_s / alpha_t) * z + c * alpha_s * x_hat
    return mean, c * sigma_s.square(), c * sigma_t.square()


def ddpm_step(z: Pictures, x_hat: Pictures, logsnr_t: LogSNR, logsnr_s: LogSNR, noise: Pictures, interpolation: float) -> Pictures:
    """z at s, drawn around the posterior mean with std = small_std^interpolation large_std^(1 - interpolation)."""
    mean, small, large = ddpm_posterior(z, x_hat, logsnr_t, logsnr_s)
    return mean + small ** (interpolation / 2) * large ** ((1 - interpolation) / 2) * noise


@sampler("ddpm", spacing="t")
def ddpm(
    denoise: Denoise,
    z: Pictures,
    levels: Levels,
    noise: Noise,
    *,
    interpolation: float = 0.2,
    clip: bool = True,
    callback: Callback | None = None,
) -> Pictures:
    """x by ancestral sampling with interpolated variance, the paper's sampler: each step draws z around the posterior mean.

    `noise` is called for every step but the last, which adds none.
    """

    def rule(index: int, z: Tensor, x_hat: Tensor, logsnr_t: Tensor, logsnr_s: Tensor) -> Tensor:
        return ddpm_step(z, x_hat, logsnr_t, logsnr_s, noise(index), interpolation)

    return walk(rule, denoise, z, levels, clip=clip, callback=callback)


# Solvers of the probability-flow ODE, by which z decides x


def ddim_step(z: Pictures, x_hat: Pictures, logsnr_t: LogSNR, logsnr_s: LogSNR) -> Pictures:
    """z at s = alpha_s x_hat + sigma_s eps_hat, where eps_hat follows from z and x_hat (Song 2021, eq. 12 with eta = 0).

    Written (sigma_s / sigma_t) z - alpha_s (exp(-h) - 1) x_hat with h = (logsnr_s - logsnr_t) / 2, in which nothing cancels: the
    flow's exact solution for an x_hat that stays constant over the step (DPM-Solver++, Lu 2022b).
    """
    _, sigma_t = alpha_sigma(logsnr_t[:, None, None, None])
    alpha_s, sigma_s = alpha_sigma(logsnr_s[:, None, None, None])
    shrink = torch.expm1((logsnr_t - logsnr_s) / 2)[:, None, None, None]
    return sigma_s / sigma_t * z - alpha_s * shrink * x_hat


@sampler("ddim")
def ddim(denoise: Denoise, z: Pictures, levels: Levels, *, clip: bool = True, callback: Callback | None = None) -> Pictures:
    """x by DDIM with eta = 0, of first order. After a clip eps_hat follows the clipped x_hat."""

    def rule(_: int, z: Tensor, x_hat: Tensor, logsnr_t: Tensor, logsnr_s: Tensor) -> Tensor:
        return ddim_step(z, x_hat, logsnr_t, logsnr_s)

    return walk(rule, denoise, z, levels, clip=clip, callback=callback)


@sampler("dpm_solver")
def dpm_solver(denoise: Denoise, z: Pictures, levels: Levels, *, clip: bool = True, callback: Callback | None = None) -> Pictures:
    """x by DPM-Solver++(2M), of second order at the cost of DDIM: for few steps (Lu 2022b, algorithm 2).

    Each step is a DDIM step with x_hat extrapolated to the step's middle. The first step has nothing to extrapolate from. The last
    one ends without noise, an infinite h, and is of first order too.
    """
    before: tuple[Tensor, Tensor] | None = None  # x_hat of the last step and its logsnr

    def rule(_: int, z: Tensor, x_hat: Tensor, logsnr_t: Tensor, logsnr_s: Tensor) -> Tensor:
        nonlocal before
        middle = x_hat
        if before is not None:
            past, logsnr_past = before
            half = (logsnr_s - logsnr_t) / (2 * (logsnr_t - logsnr_past))  # half this step's length over the last step's
            middle = x_hat + half[:, None, None, None] * (x_hat - past)
        before = x_hat, logsnr_t
        return ddim_step(z, middle, logsnr_t, logsnr_s)

    return walk(rule, denoise, z, levels, clip=clip, callback=callback)


@torch.no_grad()
def ddim_invert(denoise: Denoise, x: Pictures, levels: Levels, *, clip: bool = True, num_iterations: int = 10) -> Pictures:
    """z at the first level from which `ddim` draws x; num_iterations calls of `denoise` per step.

    A DDIM step turns z towards v_hat: z_s = cos d z_t - sin d v_hat(z_t), d the angle between the levels (Salimans and Ho 2022,
    appendix D). Backwards, z_t = (z_s + sin d v_hat(z_t)) / cos d needs v_hat at the unknown z_t itself. One iteration takes the
    last step's v_hat instead: that is plain inversion, and its error grows with the step's length. More iterations are a
    fixed-point iteration to the exact inverse (Pan 2023). In the later half only half of each change is taken, which damps the
    swing where x_hat jumps between two pictures (as the mean of several iterates does in Garibi 2024). The iteration runs on v [C]:
    on eps it is slow near t = 1, where eps_hat is nearly z itself, and on x it diverges near t = 0 when steps are long.

    On mixtures of Gaussians x comes back within 1e-4 from 50 steps and 10 iterations (1 iteration: 2e-2). Draw with the same
    conditioning, guidance, levels and clip. Steps must be short compared with the bend of v_hat, so a large w needs more of them.
    Detail finer than the noise before the last step does not come back, since no x_hat there shows it: steps equal in t leave much
    of that. With `clip`, what comes back is clipped too.
    """
    *starts, _ = levels_on_device(levels, x)
    z, v_hat = x, torch.zeros_like(x)
    alpha_s, sigma_s = torch.ones_like(starts[0]), torch.zeros_like(starts[0])  # the last step ends without noise
    for logsnr_t in reversed(starts):
        alpha_t, sigma_t = alpha_sigma(logsnr_t)
        cos = (alpha_t * alpha_s + sigma_t * sigma_s)[:, None, None, None]
        sin = (sigma_t * alpha_s - alpha_t * sigma_s)[:, None, None, None]
        for iteration in range(num_iterations):
            z_t = (z + sin * v_hat) / cos
            change = v_from_x(z_t, _predict(denoise, z_t, logsnr_t, clip), logsnr_t) - v_hat
            v_hat = v_hat + (change if 2 * iteration < num_iterations else change / 2)
        z, alpha_s, sigma_s = (z + sin * v_hat) / cos, alpha_t, sigma_t
    return z
