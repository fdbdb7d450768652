"""The forward process and the three equivalent predictions x, eps and v.

A network outputs v_hat, eps_hat or x_hat; `denoise_with` turns it into the one contract of the house, `Denoise`, which samplers
take and wrappers (guidance, thresholding, editing) wrap. At any z two predictions that agree in one of x, eps, v agree in all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from semantica.conditioning import Conditioning
from semantica.diffusion.memo import memoised
from semantica.diffusion.schedule import alpha_sigma
from semantica.diffusion.settings import Prediction

Pictures = Float[Tensor, "b 3 h w"]
LogSNR = Float[Tensor, " b"]

"""What a network outputs. v is the paper's, and the only one that is well-conditioned at both ends of the schedule."""


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


def x_from_eps(z: Pictures, eps: Pictures, logsnr: LogSNR) -> Pictures:
    """x = (z - sigma eps) / alpha. Ill-conditioned near t = 1, where alpha is 6e-4."""
    alpha, sigma = _levels(logsnr)
    return (z - sigma * eps) / alpha


def v_from_eps(z: Pictures, eps: Pictures, logsnr: LogSNR) -> Pictures:
    """v = (eps - sigma z) / alpha. Ill-conditioned near t = 1, where alpha is 6e-4."""
    alpha, sigma = _levels(logsnr)
    return (eps - sigma * z) / alpha


def x_from(prediction: Prediction, z: Pictures, output: Pictures, logsnr: LogSNR) -> Pictures:
    """x_hat from what a network of that prediction outputs at z."""
    if prediction == "v":
        return x_from_v(z, output, logsnr)
    return x_from_eps(z, output, logsnr) if prediction == "eps" else output


def denoise_with(network: Callable[[Tensor, Tensor, Any], Tensor], prediction: Prediction = "v") -> Denoise:
    """The Denoise of a network that outputs v_hat, eps_hat or x_hat.

    A network with a method `prepare(cond)` is given what that returns in place of cond, made once for every Conditioning object
    while no gradients are asked for (`memoised`): a conditioning image's keys and values, say.
    """
    prepare = getattr(network, "prepare", None)
    condition = (lambda cond: cond) if prepare is None else memoised(prepare)

    def denoise(z: Pictures, logsnr: LogSNR, cond: Conditioning) -> Pictures:
        return x_from(prediction, z, network(z, logsnr, condition(cond)), logsnr)

    return denoise
