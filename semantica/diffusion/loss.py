"""The training loss: the network's v_hat in, one number an example out. The trainer draws t and eps and averages."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from semantica.diffusion.process import LogSNR, Pictures, v_target


def eps_loss(v_hat: Pictures, x: Pictures, eps: Pictures, logsnr: LogSNR) -> Float[Tensor, " b"]:
    """‖eps - eps_hat‖², mean over pixels and channels, for each example; at least float32 whatever the inputs are.

    Computed as sigmoid(logsnr) ‖v - v_hat‖²: eps - eps_hat = alpha (v - v_hat), and alpha² = sigmoid(logsnr) (Hoogeboom 2023).
    """
    error = v_target(x, eps, logsnr) - v_hat
    error = error.to(torch.promote_types(error.dtype, torch.float32))
    return torch.sigmoid(logsnr) * error.square().mean(dim=(1, 2, 3))
