"""The training loss: the network's output in, one number an example out. The trainer draws t and eps and averages."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from semantica.diffusion.process import LogSNR, Pictures, v_target
from semantica.diffusion.settings import Prediction


def eps_loss(output: Pictures, x: Pictures, eps: Pictures, logsnr: LogSNR, prediction: Prediction = "v") -> Float[Tensor, " b"]:
    """‖eps - eps_hat‖², mean over pixels and channels, for each example; at least float32 whatever the inputs are.

    The same number whatever the network predicts, computed without going through eps_hat: eps - eps_hat = alpha (v - v_hat)
    = -(alpha / sigma) (x - x_hat), so that the weight is alpha² = sigmoid(logsnr) on v (Hoogeboom 2023), 1 on eps and
    exp(logsnr) on x (Salimans and Ho 2022, section 4).

    The same number is not the same problem. The weight on x runs to exp(15) = 3e6: there, x rounded to bfloat16 costs more (2.4)
    than knowing nothing of eps does (1), and examples near t = 0 drown all others. An eps network trains evenly, but near t = 1
    its x_hat is off by 1,800 times eps_hat's error. Only v is bounded at both ends.
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
