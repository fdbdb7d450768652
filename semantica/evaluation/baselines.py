"""Cells that no model draws, for comparison with samples: Copy of every conditioning image, training pictures, Gaussian noise.

Each has as many pictures as there are samples at one w, so that all are compared at one n. Beside Copy of one image per class
(`requests`), these are what the protocol `overview` puts next to samples.
"""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor

from semantica.data.pictures import PictureRef, list_pictures
from semantica.diffusion.keyed_random import keyed_generator
from semantica.evaluation.requests import Cell, kind
from semantica.evaluation.sets import EvaluationSet, by_image
from semantica.evaluation.settings import EvaluationConfig
from semantica.generation.generate import to_pixels
from semantica.pairs.draw import generator

COPIES, TRAIN, NOISE = "copies", "train", "noise"


def noise_picture(seed: int, index: int, resolution_px: int) -> UInt8[Tensor, "3 h w"]:
    """The index-th picture of Gaussian noise: what a sampler starts from, shown as a picture."""
    generator = keyed_generator("noise picture", seed, index)
    return to_pixels(torch.randn((1, 3, resolution_px, resolution_px), generator=generator))[0]


def named_noise(name: str, resolution_px: int) -> UInt8[Tensor, "3 h w"]:
    """The noise picture of a name noise/SEED/INDEX."""
    _, seed, index = name.split("/")
    return noise_picture(int(seed), int(index), resolution_px)


def _noise_names(cell: Cell, data: EvaluationSet, settings: EvaluationConfig) -> list[str]:
    return [f"noise/{settings.baseline_seed}/{index}" for index in range(settings.num)]


def train_names(cell: Cell, data: EvaluationSet, settings: EvaluationConfig) -> list[str]:
    """Training pictures of the encodings that hold the set, `settings.num` or all there are, in the order of files and ids."""
    pictures = by_image(list_pictures(data.encodings, ""))
    chosen = generator(settings.baseline_seed, "train pictures").permutation(sorted(pictures))[: settings.num].tolist()
    return sorted(chosen, key=lambda name: (pictures[name].file, name))


def _sampled(cell: Cell, data: EvaluationSet, settings: EvaluationConfig) -> list[tuple[PictureRef, int]]:
    """The conditioning images of the samples that the cell stands beside."""
    return data.conditions(settings.num, settings.seed + cell.conditions, settings.samples_per_condition)


kind(COPIES, is_drawn=False, title="Copy")(_sampled)
kind(TRAIN, is_drawn=False, title="training pictures", stored_in="", names=train_names)(_sampled)
kind(NOISE, is_drawn=False, title="noise", make=named_noise, names=_noise_names)(_sampled)
