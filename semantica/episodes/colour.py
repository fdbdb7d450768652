"""Any decoded picture -> 8-bit sRGB: transparency, 16-bit and float greys, CMYK, embedded colour profiles.

`images` uses it in two steps: `flatten` before the picture is resized, and `to_srgb` on the small square, where a profile takes
2 ms instead of 20. A picture without a profile is taken as sRGB, as browsers do.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from semantica.episodes.quarantine import Reason, Refused

# ICC.1, table 19: colour space of a profile -> Pillow's mode with as many channels. Profiles for other spaces are ignored.
_MODE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_MAX_PROFILE_BYTES = 4_000_000  # profiles of printing presses have up to 3 MB
_SAME_LEVELS = 2  # of 255: a profile that changes no colour by more is taken as sRGB
_GRID = np.stack(np.meshgrid(*[np.arange(0, 256, 51, dtype=np.uint8)] * 3, indexing="ij"), -1).reshape(1, -1, 3)


def flatten(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB, L or CMYK: transparency over white, 16 bits scaled (not clipped), palettes resolved.

    Raises Refused for modes without a defined range.
    """
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        return _wide_grey(image)
    is_grey = image.mode in {"1", "L", "LA", "La"}
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("L" if is_grey else "RGB")
    return image.convert("L" if is_grey else "CMYK" if image.mode == "CMYK" else "RGB")


def to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture (RGB, L or CMYK) as sRGB by its ICC profile (perceptual intent).

    A profile that is damaged, or for another number of channels, is ignored: values are taken as sRGB, or as ideal inks for CMYK.
    """
    if profile and len(profile) <= _MAX_PROFILE_BYTES:
        mode, transform = _transform(profile)
        if transform is not None and (mode == picture.mode or (mode, picture.mode) == ("RGB", "L")):
            converted = ImageCms.applyTransform(picture.convert(mode), transform)
            assert converted is not None  # only None when asked to work in place
            return converted
    return picture.convert("RGB")


@lru_cache(maxsize=16)  # most pictures on the web use one of a few profiles
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """(mode of the pictures for this profile, its transform to sRGB or None). None: already sRGB, or the profile is unusable."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODE.get(source.profile.xcolor_space.strip(), "")
        if not mode:
            return "", None
        target = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, target, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        if mode == "RGB":
            grid = Image.fromarray(_GRID)
            moved = ImageCms.applyTransform(grid, transform)
            if np.abs(np.asarray(moved).astype(int) - _GRID).max() <= _SAME_LEVELS:
                return mode, None
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a damaged profile raises any exception; the picture itself may be sound
        return "", None
    return mode, transform


def _wide_grey(image: Image.Image) -> Image.Image:
    """A grey image of 16 or 32 bits per pixel as L. (PIL's own convert clips everything above 255 to white.)

    Integers up to 65535 are taken as 16-bit in any mode (PNG); floats must be in 0..1 (TIFF); other ranges are refused.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    full = 1.0 if image.mode == "F" else 65535.0
    if not (low >= 0 and high <= full):  # also refuses NaN
        raise Refused(Reason.UNDECODABLE, f"mode {image.mode}: expected values in 0..{full:g}, got {low:g}..{high:g}")
    grey = np.rint(values.astype(np.float32) * (255.0 / full)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255  # PNG's tRNS names one grey that is transparent
    return Image.fromarray(grey)
