"""Segmentation from a few labelled pictures, by the denoiser's features of each pixel (Baranchuk 2022, arXiv 2112.03126, 4).

An ensemble of small classifiers is trained on the labelled pixels and votes. The classifiers are one batch of matrices, so that ten
cost little more than one. Only the features of the pixels that are drawn for training are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from semantica.applications.drawing import Given, several, size_of
from semantica.applications.features import LEVELS, features
from semantica.config import require
from semantica.diffusion.keyed_random import sample_generator
from semantica.errors import DataError
from semantica.generation.pipeline import Semantica

Labels: TypeAlias = Image.Image | str | Path | Tensor
"""The class of each pixel, as large as the picture: a PIL picture or a PNG whose values (or places in the palette) are the classes,
or a tensor (H, W) of whole numbers."""

_WIDTHS = (128, 32)
_BATCH, _LEARNING_RATE = 64, 1e-3


@dataclass(frozen=True)
class Segmenter:
    """A trained segmentation: `segmenter(pictures)` gives the class of every pixel at the model's resolution.

    layers: weights and biases of the classifiers, one member per row. mean, std: of the features that they were trained on.
    """

    model: Semantica
    num_classes: int
    layers: list[tuple[Tensor, Tensor]]
    mean: Float[Tensor, " c"]
    std: Float[Tensor, " c"]
    levels: tuple[float | int, ...]
    seed: int

    def __call__(self, pictures: Given | Sequence[Given]) -> Int[Tensor, "b h w"]:
        """The class that most classifiers vote for; the smaller one where two have as many votes."""
        given, _ = several(pictures)
        maps = [self._classes(picture) for picture in given]  # one by one: features of a picture are large
        side = self.model.model.shape[-1]
        return torch.stack(maps) if maps else torch.empty(0, side, side, dtype=torch.long)

    def _classes(self, picture: Given) -> Int[Tensor, "h w"]:
        seen = features(self.model, picture, levels=self.levels, seed=self.seed)[0]
        pixels = (seen.flatten(1).T - self.mean) / self.std
        votes = _logits(self.layers, pixels.expand(len(self.layers[0][0]), *pixels.shape)).argmax(-1)
        return F.one_hot(votes, self.num_classes).sum(0).argmax(-1).view(seen.shape[1:])


def segmenter(
    model: Semantica,
    pictures: Sequence[Given],
    labels: Sequence[Labels],
    num_classes: int | None = None,
    *,
    num_members: int = 10,
    pixels_per_picture: int = 1000,
    num_steps: int = 500,
    levels: Sequence[float | int] = LEVELS,
    seed: int = 0,
) -> Segmenter:
    """A segmentation that is learned from labelled pictures; call it with others.

    num_classes: None is one more than the largest label. num_members: classifiers that vote. pixels_per_picture: labelled pixels
    that are drawn from each picture for training. The result depends on the pictures, labels and seed only.
    """
    for name, value in (("num_members", num_members), ("pixels_per_picture", pixels_per_picture), ("num_steps", num_steps)):
        require(value >= 1, name, "at least 1", value)
    if not pictures or len(labels) != len(pictures):
        raise DataError(f"labels: expected one per picture and at least one picture, got {len(labels)} for {len(pictures)}")
    side = model.model.shape[-1]
    classes = torch.stack([_classes_of(label, picture, side) for label, picture in zip(labels, pictures, strict=True)]).flatten(1)
    num = int(classes.max()) + 1 if num_classes is None else num_classes
    if not 0 <= classes.min() <= classes.max() < num:
        raise DataError(f"labels: the classes are 0 to {num - 1}, got {int(classes.min())} to {int(classes.max())}")
    if len(pictures) < num:
        raise DataError(f"labels: {num} classes need at least as many labelled pictures, got {len(pictures)}")
    generator = sample_generator(seed, "segmentation/pixels")
    places = torch.stack([torch.randperm(side**2, generator=generator)[:pixels_per_picture] for _ in pictures])
    seen = features(model, pictures, levels=levels, at=places, seed=seed).transpose(1, 2).flatten(0, 1)
    mean, std = seen.mean(0), seen.std(0).clamp(min=1e-6)
    layers = _trained((seen - mean) / std, classes.gather(1, places).flatten(), num, num_members, num_steps, seed)
    return Segmenter(model, num, layers, mean, std, tuple(levels), seed)


def mean_iou(predicted: Int[Tensor, "b h w"], labels: Int[Tensor, "b h w"], num_classes: int) -> float:
    """The mean over classes of intersection over union, of all pixels together. A class that is in neither counts not at all."""
    pairs = torch.bincount((labels * num_classes + predicted).flatten(), minlength=num_classes**2).view(num_classes, num_classes)
    union = pairs.sum(0) + pairs.sum(1) - pairs.diag()
    return float((pairs.diag()[union > 0] / union[union > 0]).mean())


def _classes_of(label: Labels, picture: Given, side: int) -> Int[Tensor, "h w"]:
    """The class of each pixel of the square that the model sees: that of the nearest pixel of the label."""
    if isinstance(label, Tensor):
        values = label.cpu().long()
    else:
        try:
            opened = label if isinstance(label, Image.Image) else Image.open(Path(label).expanduser())
            values = torch.from_numpy(np.array(opened)).long()
        except (OSError, SyntaxError) as error:
            raise DataError(f"labels: {label} cannot be read ({error})") from None
    width, height = size_of(picture)
    if values.shape != (height, width):
        got = "x".join(map(str, reversed(values.shape)))
        raise DataError(f"labels: expected one class per pixel of a picture of {width}x{height}, got {got}")
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    nearest = ((torch.arange(side) + 0.5) * short / side).long()
    return values[top + nearest][:, left + nearest]


def _trained(
    x: Tensor, classes: Tensor, num_classes: int, num_members: int, num_steps: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """The classifiers, each from its own weights and on its own order of the pixels."""
    generator = sample_generator(seed, "segmentation/training")
    widths = [x.shape[1], *_WIDTHS, num_classes]
    layers = [
        (torch.randn(num_members, a, b, generator=generator) * (2 / a) ** 0.5, torch.zeros(num_members, 1, b))
        for a, b in pairwise(widths)
    ]
    parameters = [one.requires_grad_() for layer in layers for one in layer]
    optimizer = torch.optim.Adam(parameters, lr=_LEARNING_RATE)
    with torch.enable_grad():
        for _ in range(num_steps):
            rows = torch.randint(len(x), (num_members, _BATCH), generator=generator)
            loss = F.cross_entropy(_logits(layers, x[rows]).flatten(0, 1), classes[rows].flatten(), reduction="sum") / _BATCH
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return [(weight.detach(), bias.detach()) for weight, bias in layers]


def _logits(layers: list[tuple[Tensor, Tensor]], x: Float[Tensor, "m k c"]) -> Float[Tensor, "m k classes"]:
    for index, (weight, bias) in enumerate(layers):
        x = torch.baddbmm(bias, x, weight)
        x = F.relu(x) if index < len(layers) - 1 else x
    return x
