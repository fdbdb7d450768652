"""The definition of a family of vision models: its checkpoints, the class that loads them, and the meaning of the outputs.

A `Family` is chosen by the `model_type` of a checkpoint's config.json; its `run` gives tokens and pooled embedding as the paper
defines them. One file per family; `encoder.families` lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """One family. `title` is for people, `name` is stored in an EncoderIdentity."""

    name: str
    title: str
    model_types: frozenset[str]  # of config.json, the whole checkpoint's or the vision tower's
    model_class: Callable[[], Any]  # the transformers class, imported on the call
    run: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]  # pixel values (B, 3, H, W) -> tokens (B, N, D), pooled (B, D)
    num_tokens: Callable[[Any, int], int]  # (config of a model, image_px) -> N
    default_resample: str  # of the family's processor, when its file names none


def patches_per_side(config: Any, image_px: int) -> int:
    """The number of whole patches along one side of a picture of image_px (the model ignores the remaining pixels)."""
    side = config.patch_size
    return image_px // int(side if isinstance(side, int) else side[0])
