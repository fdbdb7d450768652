"""Stored pictures -> the input of an encoder: the arithmetic of the published processor, in torch, on the encoder's device.

In: square uint8 pictures of any size, and a checkpoint's preprocessor_config.json. Out: normalised float32 pixel values at
image_px. Resizing rounds to whole levels, as the processors do; on a CPU the uint8 kernels of torchvision give the processor's own
values. When image_px is not the published size, the resize before the crop is scaled with it (256 -> 224 at 224 px, 128 -> 112 at
112 px).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semantica.errors import DataError, WeightsError

_FILES = ("preprocessor_config.json", "processor_config.json")
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_PROCESSORS = ("Bit", "Siglip", "Siglip2")  # ...ImageProcessor, ...ImageProcessorFast, ...ImageProcessorPil
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Preprocessing:
    """Resize to resize_px, crop the middle image_px, subtract mean and divide by std (of values in [0, 1])."""

    image_px: int
    resize_px: int
    resample: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def fit(self, images: UInt8[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 s s"]:
        """The pictures at image_px, on their own device. Raises DataError when they are not square."""
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import resize

        height, width = images.shape[-2:]
        if height != width:
            raise DataError(f"encoder: pictures must be square, got {width}x{height}; run semantica ingest, which cuts them")
        if height != self.resize_px:
            images = resize(images, [self.resize_px] * 2, interpolation=InterpolationMode(self.resample), antialias=True)
        edge = int((self.resize_px - self.image_px) / 2.0)
        return images[..., edge : edge + self.image_px, edge : edge + self.image_px]

    def normalise(self, images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b 3 s s"]:
        """The pixel values (float32). Mean and std are scaled to 0..255 first, as the processors do."""
        mean = (torch.tensor(self.mean, device=images.device) * 255).view(3, 1, 1)
        std = (torch.tensor(self.std, device=images.device) * 255).view(3, 1, 1)
        return images.float().sub_(mean).div_(std)


def read_preprocessing(folder: Path, image_px: int, *, default_resample: str, imagenet: bool) -> Preprocessing:
    """The published preprocessing of a checkpoint's folder, scaled to image_px.

    A folder without such a file: resize to image_px, with ImageNet's mean and std or 0.5. Raises WeightsError when the file is
    damaged or asks for an unsupported step.
    """
    path = next((folder / name for name in _FILES if (folder / name).exists()), None)
    if path is None:
        return Preprocessing(image_px, image_px, default_resample, *(_IMAGENET if imagenet else _HALF))
    try:
        values = json.loads(path.read_text())
        values = values.get("image_processor", values)
        mean, std = (tuple(float(v) for v in values[name]) for name in ("image_mean", "image_std"))
        resize_px, published_px = _sizes(values, image_px)
        resample = values.get("resample", default_resample)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"encoder: {path} must hold image_mean and image_std, and sizes in pixels, got {type(error).__name__} {error}"
        ) from None
    _check_supported(path, values, resample, len(mean), len(std))
    return Preprocessing(image_px, round(image_px * resize_px / published_px), _RESAMPLE.get(resample, resample), mean, std)


def _sizes(values: dict[str, Any], image_px: int) -> tuple[int, int]:
    """(side after the resize, side after the crop); image_px when the file leaves both to the processor's class."""
    if "max_num_patches" in values:  # NaFlex: the largest square of whole patches
        side = int(values["max_num_patches"] ** 0.5) * int(values.get("patch_size", 16))
        return side, side
    crop = values.get("crop_size") if values.get("do_center_crop", values.get("crop_size") is not None) else None
    size = values.get("size")
    resized = _side(size) if size else image_px
    published = _side(crop) if crop else resized
    if not size:
        resized = published
    if resized < published:
        raise ValueError(f"a crop of {published} px out of {resized} px")
    return resized, published


def _side(size: Any) -> int:
    if isinstance(size, int):
        return size
    side = size["shortest_edge"] if "shortest_edge" in size else size["height"]
    if side != size.get("width", side):
        raise ValueError(f"a size that is not square: {size}")
    return int(side)


def _check_supported(path: Path, values: dict[str, Any], resample: Any, num_mean: int, num_std: int) -> None:
    """Raise WeightsError when the file asks for a step that this code does not do, so that nothing is encoded differently."""
    kind = str(values.get("image_processor_type", values.get("feature_extractor_type", "Bit")))
    name = kind.partition("ImageProcessor")[0].partition("FeatureExtractor")[0]
    expected = {
        "image_processor_type": (name in _PROCESSORS, " or ".join(f"{p}ImageProcessor" for p in _PROCESSORS), kind),
        "resample": (resample in _RESAMPLE or resample in _RESAMPLE.values(), "2 (bilinear) or 3 (bicubic)", resample),
        "image_mean": (num_mean == num_std == 3, "3 numbers, as image_std", num_mean),
        "rescale_factor": (abs(values.get("rescale_factor", 1 / 255) * 255 - 1) < 1e-6, "1/255", values.get("rescale_factor")),
    }
    for flag in ("do_resize", "do_rescale", "do_normalize"):
        expected[flag] = (bool(values.get(flag, True)), "true", values.get(flag))
    expected["do_pad"] = (not values.get("do_pad"), "false", values.get("do_pad"))
    for field, (holds, wanted, got) in expected.items():
        if not holds:
            raise WeightsError(f"encoder: {path}: {field} must be {wanted}, got {got!r}; this preprocessing is not supported")
