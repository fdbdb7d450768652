"""DINOv2 (ViT-B/14, ViT-L/14 and their sizes), with or without registers, through transformers.

*tokens* is the final block's output after the final layer norm, CLS first; *pooled* is the CLS token (the paper, §4.2). Register
tokens stand for no patch of the picture, so *tokens* leaves them out: it holds CLS and patches, as without registers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from semantica.encoders.family import Family, patches_per_side


def _plain_class() -> Any:
    from transformers import Dinov2Model

    return Dinov2Model


def _registers_class() -> Any:
    from transformers import Dinov2WithRegistersModel

    return Dinov2WithRegistersModel


def _run(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    output = model(pixel_values=pixel_values).last_hidden_state
    return output, output[:, 0]


def _run_with_registers(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    output = model(pixel_values=pixel_values).last_hidden_state
    first_patch = 1 + int(model.config.num_register_tokens)  # type: ignore[union-attr, arg-type]
    return torch.cat([output[:, :1], output[:, first_patch:]], dim=1), output[:, 0]


def _num_tokens(config: Any, image_px: int) -> int:
    return 1 + patches_per_side(config, image_px) ** 2


DINOV2 = Family("dinov2", "DINOv2", frozenset({"dinov2"}), _plain_class, _run, _num_tokens, "bicubic")
DINOV2_REGISTERS = Family(
    "dinov2_with_registers", "DINOv2 with registers", frozenset({"dinov2_with_registers"}),
    _registers_class, _run_with_registers, _num_tokens, "bicubic",
)  # fmt: skip
