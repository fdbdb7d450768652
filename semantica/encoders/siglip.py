"""SigLIP and SigLIP 2 through transformers: the vision tower of a whole checkpoint, or a tower saved alone.

*tokens* is the final block's output after the final layer norm, one token per patch (there is no CLS). *pooled* is the output of
the attention-pooling (MAP) head. SigLIP 2 checkpoints with a fixed size (siglip2-base-patch16-224) use the class of SigLIP. NaFlex
checkpoints take patches instead of a picture, with a mask and the number of rows and columns; a square picture gives a full mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from semantica.encoders.family import Family, patches_per_side


def _fixed_class() -> Any:
    from transformers import SiglipVisionModel

    return SiglipVisionModel


def _naflex_class() -> Any:
    from transformers import Siglip2VisionModel

    return Siglip2VisionModel


def _run(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    # The position table is used as stored at the published size, and interpolated at any other size.
    resized = tuple(pixel_values.shape[-2:]) != _published_size(model.config)
    output = model(pixel_values=pixel_values, interpolate_pos_encoding=resized)
    return output.last_hidden_state, output.pooler_output


def _published_size(config: Any) -> tuple[int, int]:
    size = config.image_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _run_naflex(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    config: Any = model.config
    side = patches_per_side(config, pixel_values.shape[-1])
    patches = to_patches(pixel_values, side)
    shapes = torch.full((len(patches), 2), side, dtype=torch.long, device=patches.device)
    mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=patches.device)
    output = model(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes)
    return output.last_hidden_state, output.pooler_output


def to_patches(pixel_values: Tensor, side: int) -> Tensor:
    """(B, side*side, patch*patch*3): patches row by row, the channels of a pixel together, as the NaFlex processor cuts them."""
    b, c, h, w = pixel_values.shape
    patches = pixel_values.reshape(b, c, side, h // side, side, w // side)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(b, side * side, -1)


def _num_tokens(config: Any, image_px: int) -> int:
    return patches_per_side(config, image_px) ** 2


SIGLIP = Family("siglip", "SigLIP", frozenset({"siglip", "siglip_vision_model"}), _fixed_class, _run, _num_tokens, "bicubic")
SIGLIP2_NAFLEX = Family(
    "siglip2_naflex", "SigLIP 2 NaFlex", frozenset({"siglip2", "siglip2_vision_model"}),
    _naflex_class, _run_naflex, _num_tokens, "bilinear",
)  # fmt: skip
