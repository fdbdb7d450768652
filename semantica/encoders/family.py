"""What tells one family of vision models from another: its checkpoints, the class that loads them, what the outputs mean.

Comes in: the `model_type` of a checkpoint's config.json. Goes out: a `Family`, whose `run` gives tokens and pooled embedding as
the paper defines them. One file a family; `encoder.py` asks each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """One family. `title` is for people, `name` is what an identity holds."""

    name: str
    title: str
    model_types: frozenset[str]  # of config.json, the whole checkpoint's or the vision tower's
    model_class: Callable[[], Any]  # the transformers class; imported when it is asked for
    run: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]  # pixel values (B, 3, H, W) -> tokens (B, N, D), pooled (B, D)
    num_tokens: Callable[[Any, int], int]  # N for a model's config at image_px
    default_resample: str  # of the family's processor, when its file names none


def patches_per_side(config: Any, image_px: int) -> int:
    """Whole patches along one side of a picture of image_px (a rest of pixels is not looked at)."""
    side = config.patch_size
    return image_px // int(side if isinstance(side, int) else side[0])
