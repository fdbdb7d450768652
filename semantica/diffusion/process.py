"""The forward process, the three equivalent predictions x, eps and v, and the training loss.

A network outputs v_hat, eps_hat or x_hat; `denoise_with` turns it into the one contract of the house, `Denoise`, which samplers
take and wrappers (guidance, thresholding, editing) wrap. At any z two predictions that agree in one of x, eps, v agree in all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from semantica.conditioning.values import Conditioning
from semantica.diffusion.schedule import alpha_sigma
from semantica.diffusion.settings import Prediction, Weighting
from semantica.errors import DataError

Pictures = Float[Tensor, "b c h w"]
LogSNR = Float[Tensor, " b"]


@runtime_checkable
class Denoise(Protocol):
    """(z, logsnr) -> x_hat: the expected picture behind z, in [-1, 1] up to the network's error (not clipped).

    It is bound to the conditioning of its B rows: row i of z is denoised under row i of that conditioning.
    """

    def __call__(self, z: Pictures, logsnr: LogSNR, /) -> Pictures: ...


Bind = Callable[[Conditioning], Denoise]
"""cond -> the Denoise of its rows. Whatever depends on cond alone is computed here, once for all steps."""


@runtime_checkable
class Network(Protocol):
    """What `bind_with` needs: `prepare` computes what depends on the conditioning alone, and a call takes that in its place."""

    def prepare(self, cond: Conditioning, /) -> Any: ...

    def __call__(self, z: Tensor, logsnr: Tensor, prepared: Any, /) -> Tensor: ...


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


def x_from(prediction: Prediction, z: Pictures, output: Pictures, logsnr: LogSNR) -> Pictures:
    """x_hat from what a network of that prediction outputs at z."""
    if prediction == "v":
        return x_from_v(z, output, logsnr)
    return x_from_eps(z, output, logsnr) if prediction == "eps" else output


def denoise_with(network: Callable[[Tensor, Tensor], Tensor], prediction: Prediction = "v") -> Denoise:
    """The Denoise of a function (z, logsnr) -> v_hat, eps_hat or x_hat."""

    def denoise(z: Pictures, logsnr: LogSNR) -> Pictures:
        return x_from(prediction, z, network(z, logsnr), logsnr)

    return denoise


def bind_with(network: Network, prediction: Prediction = "v") -> Bind:
    """The Bind of a network: each binding prepares its conditioning once (keys and values, say) and uses that at every step.

    A binding sees the weights and the gradient mode of the moment it is made. Bind under `torch.no_grad()` to draw; for gradients
    with respect to the conditioning bind with gradients on, once for every backward pass. A Denoise raises DataError for a z with
    another number of rows than its conditioning.
    """

    def bind(cond: Conditioning) -> Denoise:
        num_rows, prepared = len(cond), network.prepare(cond)

        def output(z: Tensor, logsnr: Tensor) -> Tensor:
            if len(z) != num_rows:
                raise DataError(f"denoise: z must have the {num_rows} rows of the conditioning it is bound to, got {len(z)}")
            return network(z, logsnr, prepared)

        return denoise_with(output, prediction)

    return bind


def loss_weight(logsnr: LogSNR, weighting: Weighting, bias: float | int = 0.0) -> Float[Tensor, " b"]:
    """What ‖eps - eps_hat‖² is multiplied with before the mean over examples.

    eps: 1, the paper's loss. v: 1 + exp(-logsnr), which makes it ‖v - v_hat‖² (see `eps_loss`): the levels at which the layout is
    decided count as much as the others. sigmoid: sigmoid(bias - logsnr), which lets levels above the bias go (Kingma and Gao 2023;
    Hoogeboom 2024, arXiv 2410.19324).
    """
    if weighting == "eps":
        return torch.ones_like(logsnr)
    return 1 / torch.sigmoid(logsnr) if weighting == "v" else torch.sigmoid(bias - logsnr)


def eps_loss(output: Pictures, x: Pictures, eps: Pictures, logsnr: LogSNR, prediction: Prediction = "v") -> Float[Tensor, " b"]:
    """The training loss of each example: ‖eps - eps_hat‖², mean over pixels and channels; at least float32 whatever the inputs are.

    The value does not depend on what the network predicts, and is computed without eps_hat: eps - eps_hat = alpha (v - v_hat)
    = -(alpha / sigma) (x - x_hat), so that the weight is alpha² = sigmoid(logsnr) on v (Hoogeboom 2023), 1 on eps and
    exp(logsnr) on x (Salimans and Ho 2022, section 4).

    Training does depend on it. The weight on x reaches exp(15) = 3e6: there, x rounded to bfloat16 costs more (2.4) than knowing
    nothing of eps does (1), and examples near t = 0 drown all others. An eps network trains evenly, but near t = 1 its x_hat is
    off by 1,800 times eps_hat's error. Only v is bounded at both ends.
    """
    if prediction == "v":
        target, weight = v_target(x, eps, logsnr), torch.sigmoid(logsnr)
    elif prediction == "eps":
        target, weight = eps, torch.ones_like(logsnr)
    else:
        target, weight = x, torch.exp(logsnr)
    error = target - output
    error = error.to(torch.promote_types(error.dtype, torch.float32))
    return weight * error.square().mean(dim=(1, 2, 3))
