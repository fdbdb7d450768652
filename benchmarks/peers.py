"""What the denoiser is measured against: two networks of the field, of like compute, behind its own signature.

In: a DenoiserConfig. Out: modules `(z, logsnr, cond) -> v_hat` that step_loss and drawing.bind_every_step take like our own. Each
peer has our patching, our halvings and, as far as it can, our blocks at every resolution; its width is searched until its training
GFLOP of an image are ours. FLOPs are counted on the real modules by torch's FlopCounterMode; 1 multiply-accumulate = 2 FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from semantica.conditioning.values import Conditioning
from semantica.denoiser import configs as denoisers
from semantica.denoiser.configs import DenoiserConfig
from semantica.denoiser.uvit import UViT
from semantica.training.compute import prepare
from semantica.training.recipe import ComputeConfig

Size = Literal["tiny", "small-64", "base"]
MAX_OFF = 0.15  # of the GFLOP of a peer from ours
_WIDTH_STEPS = (32, 16, 8, 4)  # a peer keeps the widths that suit tensor cores where one of them is near enough


SHAPES: dict[Size, Callable[[], DenoiserConfig]] = {"tiny": denoisers.tiny, "small-64": denoisers.small, "base": denoisers.base}


def denoiser_config(size: Size) -> DenoiserConfig:
    """The denoiser of a size: the demo's, that of one GPU at 64 px, the paper's base."""
    return SHAPES[size]()


class LucidrainsUViT(nn.Module):
    """denoising_diffusion_pytorch's UViT (simple_diffusion.py): convolutions and linear attention above, a transformer below.

    It takes no condition, so it is spared the work of one.
    """

    def __init__(self, config: DenoiserConfig, width: int) -> None:
        super().__init__()
        from denoising_diffusion_pytorch.simple_diffusion import UViT as Network

        lowest = config.stages[-1]
        halvings = len(config.stages) - 1
        self.net = Network(
            dim=2 * width,
            init_dim=width,
            dim_mults=tuple(2**index for index in range(halvings)),
            vit_depth=lowest.num_blocks,
            vit_dropout=lowest.dropout,
            attn_dim_head=config.head_dim,
            attn_heads=max(1, (width << halvings) // config.head_dim),
            ff_mult=config.mlp_ratio,
            patch_size=config.patch_px,
        )

    def forward(self, z: Tensor, logsnr: Tensor, cond: Conditioning) -> Tensor:
        """Its output, taken as v_hat, in z's dtype whatever the weights are."""
        dtype = next(self.parameters()).dtype
        out: Tensor = self.net(z.to(dtype), logsnr.to(dtype))
        return out.to(z.dtype)


class DiffusersUNet(nn.Module):
    """diffusers' UNet2DConditionModel: residual blocks, and where we have transformers also attention to itself and to the tokens.

    Widths double up to four times the first, as in the model's defaults; dropout is left out, which spares it that work.
    """

    def __init__(self, config: DenoiserConfig, width: int) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.patch_px = config.patch_px
        channels = tuple(width * min(4, 1 << index) for index in range(len(config.stages)))
        attends = [stage.kind == "transformer" for stage in config.stages]
        patch_channels = 3 * config.patch_px**2
        self.net = UNet2DConditionModel(
            sample_size=config.resolution_px // config.patch_px,
            in_channels=patch_channels,
            out_channels=patch_channels,
            block_out_channels=channels,
            layers_per_block=min(2, config.stages[0].num_blocks),
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            cross_attention_dim=config.token_dim,
            # In this class the field of that name is the number of heads (diffusers issue 2011).
            attention_head_dim=tuple(max(1, c // config.head_dim) for c in channels),
            norm_num_groups=math.gcd(width, 32),
        )

    def forward(self, z: Tensor, logsnr: Tensor, cond: Conditioning) -> Tensor:
        """Its output, taken as v_hat, in z's dtype whatever the weights are; null rows see tokens of zeros."""
        dtype = next(self.parameters()).dtype
        tokens = torch.where(cond.present[:, :, None, None], cond.tokens, 0).flatten(1, 2).to(dtype)
        patches = F.pixel_unshuffle(z.to(dtype), self.patch_px)
        (out,) = self.net(patches, logsnr, encoder_hidden_states=tokens, return_dict=False)
        return F.pixel_shuffle(out, self.patch_px).to(z.dtype)


OURS = "semantica"
PEERS: dict[str, Callable[[DenoiserConfig, int], nn.Module]] = {
    "lucidrains UViT": LucidrainsUViT,
    "diffusers UNet": DiffusersUNet,
}


def random_conditioning(config: DenoiserConfig, batch: int, device: torch.device | str) -> Conditioning:
    """Tokens and pooled embeddings of normal noise, one image a row."""
    tokens = torch.randn(batch, config.num_tokens, config.token_dim, device=device)
    return Conditioning.of(tokens, torch.randn(batch, config.pooled_dim, device=device))


def gflop(make: Callable[[], nn.Module], config: DenoiserConfig, *, training: bool) -> float:
    """GFLOP of one image: forward, and backward when training. Counted on the meta device, without memory or arithmetic."""
    with torch.device("meta"):
        network = make()
        z, logsnr = torch.empty(1, 3, config.resolution_px, config.resolution_px), torch.empty(1)
        cond = random_conditioning(config, 1, "meta")
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
            out = network(z, logsnr, cond)
            if training:
                out.sum().backward()
    return float(counter.get_total_flops()) / 1e9


def nearest_width(cost: Callable[[int], float], target: float, step: int) -> int:
    """The multiple of `step` whose cost, which grows with the width, is nearest to the target by ratio."""
    low, high = 0, 1
    while cost(step * high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(step * middle) < target else (low, middle)
    return min((step * units for units in (low, high) if units), key=lambda width: abs(math.log(cost(width) / target)))


def peer_width(name: str, config: DenoiserConfig) -> int:
    """The width at which a peer's training GFLOP are within MAX_OFF of the denoiser's. Raises SystemExit when none is."""
    target = gflop(lambda: UViT(config), config, training=True)

    @cache
    def cost(width: int) -> float:
        return gflop(lambda: PEERS[name](config, width), config, training=True)

    for step in _WIDTH_STEPS:
        width = nearest_width(cost, target, step)
        if abs(cost(width) / target - 1) <= MAX_OFF:
            return width
    raise SystemExit(f"peers: {name} comes no nearer to {target:.3g} GFLOP an image than {cost(width):.3g}, at width {width}")


def contenders(config: DenoiserConfig, only: str | None = None) -> dict[str, Callable[[], nn.Module]]:
    """Name -> what builds it: the denoiser and every peer at its width, or one of them."""
    made: dict[str, Callable[[], nn.Module]] = {OURS: partial(UViT, config)} if only in (None, OURS) else {}
    wanted = {name: network for name, network in PEERS.items() if only in (None, name)}
    return made | {name: partial(network, config, peer_width(name, config)) for name, network in wanted.items()}


def settled(network: nn.Module) -> nn.Module:
    """The network with its zero matrices drawn anew: zeros hide a wrong output, and cost an accelerator less power than numbers."""
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(std=1 / math.sqrt(weight[0].numel()))
    return network


def prepared(network: nn.Module, compute: ComputeConfig) -> nn.Module:
    """The network laid out and compiled: ours as the house does it, a peer likewise, but that graph breaks are allowed."""
    if isinstance(network, UViT):
        return prepare(network, compute)
    if compute.channels_last:
        network.to(memory_format=torch.channels_last)
    if compute.compile:
        network.compile(dynamic=False)
    return network
