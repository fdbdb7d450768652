"""What a DenoiserConfig costs: parameters and FLOPs, counted on the meta device, without memory or arithmetic."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from semantica.conditioning import Conditioning
from semantica.denoiser.uvit import DenoiserConfig, UViT


def num_parameters(config: DenoiserConfig) -> int:
    """The number of learned parameters."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UViT(config).parameters())


def training_flops(config: DenoiserConfig) -> int:
    """FLOPs of forward and backward for one training image; 1 multiply-accumulate = 2 FLOPs.

    Counts matrix products, convolutions and attention (torch's FlopCounterMode); recomputation, the encoder and the optimizer
    are not in it.
    """
    with torch.device("meta"):
        network = UViT(config)
        z = torch.empty(1, 3, config.resolution_px, config.resolution_px)
        cond = Conditioning(
            torch.empty(1, config.num_tokens, config.token_dim), torch.empty(1, config.pooled_dim), torch.empty(1, dtype=torch.bool)
        )
        with FlopCounterMode(display=False) as counter:
            network(z, torch.empty(1), cond).sum().backward()
    return int(counter.get_total_flops())
