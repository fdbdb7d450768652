"""The forward process and the three equivalent predictions x, eps and v.

A network outputs v_hat; `denoise_with` turns it into the one contract of the house, `Denoise`, which samplers take and wrappers
(guidance, thresholding, editing) wrap. At any z two predictions that agree in one of x, eps, v agree in all three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from semantica.conditioning import Conditioning
from semantica.diffusion.schedule import alpha_sigma

Pictures = Float[Tensor, "b 3 h w"]
LogSNR = Float[Tensor, " b"]


@runtime_checkable
class Denoise(Protocol):
    """(z, logsnr, cond) -> x_hat: the expected picture behind z, in [-1, 1] up to the network's error (not clipped)."""

    def __call__(self, z: Pictures, logsnr: LogSNR, cond: Conditioning, /) -> Pictures: ...


def _levels(logsnr: LogSNR) -> tuple[Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]:
    return alpha_sigma(logsnr[:, None, None, None])


def diffuse(x: Pictures, eps: Pictures, logsnr: LogSNR) -> Pictures:
    """z = alpha x + sigma eps."""
    alpha, sigma = _levels(logsnr)
    return alpha * x + sigma * eps


def v_target(x: Pictures, eps: Pictures, logsnr: LogSNR) -> Pictures:
    """v = alpha eps - sigma x (Salimans and Ho 2022, appendix D)."""
    alpha, sigma = _levels(logsnr)
    return alpha * eps - sigma * x


def x_from_v(z: Pictures, v: Pictures, logsnr: LogSNR) -> Pictures:
    """x = alpha z - sigma v."""
    alpha, sigma = _levels(logsnr)
    return alpha * z - sigma * v


def eps_from_v(z: Pictures, v: Pictures, logsnr: LogSNR) -> Pictures:
    """eps = alpha v + sigma z."""
    alpha, sigma = _levels(logsnr)
    return alpha * v + sigma * z


def eps_from_x(z: Pictures, x: Pictures, logsnr: LogSNR) -> Pictures:
    """eps = (z - alpha x) / sigma. Ill-conditioned near t = 0, where sigma is 6e-4."""
    alpha, sigma = _levels(logsnr)
    return (z - alpha * x) / sigma


def v_from_x(z: Pictures, x: Pictures, logsnr: LogSNR) -> Pictures:
    """v = (alpha z - x) / sigma. Ill-conditioned near t = 0, where sigma is 6e-4."""
    alpha, sigma = _levels(logsnr)
    return (alpha * z - x) / sigma


def denoise_with(network: Callable[[Tensor, Tensor, Conditioning], Tensor]) -> Denoise:
    """The Denoise of a network that outputs v_hat."""

    def denoise(z: Pictures, logsnr: LogSNR, cond: Conditioning) -> Pictures:
        return x_from_v(z, network(z, logsnr, cond), logsnr)

    return denoise
