"""The network of the FID: Inception-v3 as the TensorFlow graph of 2015 has it, up to its pool features. Pictures in, (b, 2048) out.

It differs from torchvision's Inception-v3: average pools leave padding out of the mean, the last block pools by maximum, and the
weights are TensorFlow's (Szegedy 2016, figures 5 to 7; Heusel 2017 for the use in the FID). Batch norms without a scale are folded
into the convolutions, so the network consists of convolutions with a bias, rectifiers and pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

FEATURE_DIM = 2048
_EPS = 1e-3  # of the graph's batch norms

_Size = tuple[int, int]
_1, _3, _5, _1X7, _7X1, _1X3, _3X1 = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1), (1, 3), (3, 1)


@dataclass(frozen=True)
class NormedConv:
    """A convolution's weight and its batch norm; `scale` of ones where the graph has none."""

    weight: Float[Tensor, "o i h w"]
    mean: Float[Tensor, " o"]
    var: Float[Tensor, " o"]
    beta: Float[Tensor, " o"]
    scale: Float[Tensor, " o"] | None = None


class _Conv(nn.Conv2d):
    """A convolution and a rectifier."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu_()


class _Branches(nn.ModuleList):
    """Several branches of the same input, with their channels concatenated."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], dim=1)


def inception_network() -> nn.Sequential:
    """The network without weights: pictures of 299 px, (level - 128) / 128, to pool features. Convolutions in the graph's order."""
    with torch.device("meta"):
        network = nn.Sequential(
            _Conv(3, 32, 3, stride=2),
            _Conv(32, 32, 3),
            _Conv(32, 64, 3, padding=1),
            _shrink(),
            _Conv(64, 80, 1),
            _Conv(80, 192, 3),
            _shrink(),
            *(_block_35(num_in, pooled) for num_in, pooled in ((192, 32), (256, 64), (288, 64))),
            _Branches(
                [_conv_chain(288, (384, _3), halved=True), _conv_chain(288, (64, _1), (96, _3), (96, _3), halved=True), _shrink()]
            ),
            *(_block_17(width) for width in (128, 160, 160, 192)),
            _Branches(
                [
                    _conv_chain(768, (192, _1), (320, _3), halved=True),
                    _conv_chain(768, (192, _1), (192, _1X7), (192, _7X1), (192, _3), halved=True),
                    _shrink(),
                ]
            ),
            _block_8(1280, nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)),
            _block_8(2048, nn.MaxPool2d(3, stride=1, padding=1)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
    return network


def with_weights(network: nn.Sequential, convs: Sequence[NormedConv]) -> nn.Sequential:
    """The network in evaluation mode with the given convolutions, in the graph's order. Batch norms are folded in float64."""
    own = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for module, conv in zip(own, convs, strict=True):
        assert module.weight.shape == conv.weight.shape, (module.weight.shape, conv.weight.shape)
        factor = (torch.ones_like(conv.var) if conv.scale is None else conv.scale).double() / (conv.var.double() + _EPS).sqrt()
        weight = conv.weight.double() * factor.view(-1, 1, 1, 1)
        module.weight = nn.Parameter(weight.float(), requires_grad=False)
        module.bias = nn.Parameter((conv.beta.double() - conv.mean.double() * factor).float(), requires_grad=False)
    return network.eval()


def _block_35(num_in: int, pooled: int) -> _Branches:
    ways = [
        _conv_chain(num_in, (64, _1)),
        _conv_chain(num_in, (48, _1), (64, _5)),
        _conv_chain(num_in, (64, _1), (96, _3), (96, _3)),
    ]
    return _Branches([*ways, _pool_branch(num_in, pooled)])


def _block_17(width: int) -> _Branches:
    two = _conv_chain(768, (width, _1), (width, _1X7), (192, _7X1))
    four = _conv_chain(768, (width, _1), (width, _7X1), (width, _1X7), (width, _7X1), (192, _1X7))
    return _Branches([_conv_chain(768, (192, _1)), two, four, _pool_branch(768, 192)])


def _block_8(num_in: int, pool: nn.Module) -> _Branches:
    one = nn.Sequential(_conv_chain(num_in, (384, _1)), _fork())
    two = nn.Sequential(_conv_chain(num_in, (448, _1), (384, _3)), _fork())
    return _Branches([_conv_chain(num_in, (320, _1)), one, two, nn.Sequential(pool, _conv_chain(num_in, (192, _1)))])


def _fork() -> _Branches:
    return _Branches([_conv_chain(384, (384, _1X3)), _conv_chain(384, (384, _3X1))])


def _pool_branch(num_in: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), _conv_chain(num_in, (num_out, _1)))


def _shrink() -> nn.Module:
    return nn.MaxPool2d(3, stride=2)


def _conv_chain(num_in: int, *convs: tuple[int, _Size], halved: bool = False) -> nn.Sequential:
    """A chain of convolutions that keep the size; with `halved` the last one has stride 2."""
    layers = []
    for index, (num_out, size) in enumerate(convs):
        last = halved and index == len(convs) - 1
        padding = (0, 0) if last else (size[0] // 2, size[1] // 2)
        layers.append(_Conv(num_in, num_out, size, stride=2 if last else 1, padding=padding))
        num_in = num_out
    return nn.Sequential(*layers)
