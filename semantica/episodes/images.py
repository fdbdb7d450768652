"""The only place where untrusted bytes become pixels: decode by Pillow, crop to a square, store as lossless WebP.

In: the bytes of one file of a crawl. Out: an sRGB square of `image_px`, or `Refused` with a reason code. The sizes in the file's
header are checked before any pixel is decoded. `decoder` runs this module in a child process that may die.

Lossless WebP with (method 1, quality 0) takes 8 ms and 31 KB per 256 px picture, Pillow's default (4, 80) 39 ms and 29 KB, PNG 8 ms
and 43 KB (one core of a shared Xeon, 24 pictures of arcade, augly and astronomy).
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import (  # noqa: F401 - a plugin registers its formats; for one that is missing Pillow would load all of its seventy
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from semantica.config import config, free, require
from semantica.episodes import colour
from semantica.episodes.quarantine import Reason, Refused

# Pillow tries these formats only: its other sixty decoders are rare on the web and rarely hardened by their authors.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF")

# Pillow itself refuses more pixels (2 × Image.MAX_IMAGE_PIXELS). That limit belongs to the process and is not changed here.
PILLOW_MAX_PIXELS = 178_956_970

# EXIF orientation -> the transposition that turns the picture upright (EXIF 2.3, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))  # width becomes height


@config
class ImageConfig:
    """Which files count as pictures, and how pictures are stored."""

    image_px: int = 256  # side of the stored square
    min_side_px: int = 64  # a picture with a shorter side is refused as too_small
    max_aspect: float = 3.0  # long side over short side; banners and rulers have more
    max_pixels: int = 50_000_000  # checked in the header, before decoding
    max_bytes: int = 50_000_000  # of the file
    blank_levels: int = 4  # refused as blank when no channel varies by more than this (of 255) in the square
    isolate: bool = free(True)  # decode in a child process that may die, hang or run out of memory; False: in this process
    decode_timeout_s: float = free(20.0)  # wall-clock time per picture in the child; a usual picture takes 0.02 s
    decode_memory_mb: int = 2048  # memory per picture in the child, in MiB; 50 million pixels take up to 1 GiB

    def __post_init__(self) -> None:
        require(1 <= self.image_px <= 4096, "image_px", "in 1..4096", self.image_px)
        require(self.min_side_px >= 1, "min_side_px", "at least 1", self.min_side_px)
        require(self.max_aspect >= 1, "max_aspect", "at least 1", self.max_aspect)
        require(1 <= self.max_pixels <= PILLOW_MAX_PIXELS, "max_pixels", f"in 1..{PILLOW_MAX_PIXELS}", self.max_pixels)
        require(1 <= self.max_bytes < 2**31, "max_bytes", "in 1..2147483647", self.max_bytes)
        require(0 <= self.blank_levels <= 255, "blank_levels", "in 0..255", self.blank_levels)
        require(0 < self.decode_timeout_s <= 3600, "decode_timeout_s", "above 0, at most 3600", self.decode_timeout_s)
        require(16 <= self.decode_memory_mb <= 2**20, "decode_memory_mb", "in 16..1048576", self.decode_memory_mb)


@dataclass(frozen=True)
class NormalisedImage:
    """A picture as it is stored: `data` is lossless WebP of `pixels`, an RGB square."""

    data: bytes
    pixels: Image.Image
    original_width: int  # as displayed, after EXIF orientation
    original_height: int

    @property
    def width(self) -> int:
        return self.pixels.width

    @property
    def height(self) -> int:
        return self.pixels.height


def normalise(data: bytes, settings: ImageConfig) -> NormalisedImage:
    """The picture in `data` as it is stored: short side resized to image_px (antialiased), middle square, sRGB.

    Pictures between min_side_px and image_px are scaled up, so that all have one size. Raises Refused.
    """
    check_length(data, settings)
    try:
        decoded = decode(data, settings)
        side = settings.image_px
        square = colour.to_srgb(ImageOps.fit(decoded.picture, (side, side), Image.Resampling.LANCZOS), decoded.profile)
        spread = int(np.ptp(np.asarray(square), axis=(0, 1)).max())
        if spread <= settings.blank_levels:
            raise Refused(Reason.BLANK, f"one colour, RGB {square.getpixel((0, 0))}; channels vary by {spread} of 255")
        stream = io.BytesIO()
        square.save(stream, "WEBP", lossless=True, method=1, quality=0)  # effort: see module docstring
        return NormalisedImage(stream.getvalue(), square, decoded.width, decoded.height)
    except MemoryError:
        raise Refused(Reason.DECODER_MEMORY, "expected a picture that fits in memory, ran out of it") from None


def check_length(data: bytes, settings: ImageConfig) -> None:
    """Raise Refused when the file is empty or has more than max_bytes."""
    if not data:
        raise Refused(Reason.EMPTY_FILE, "expected an image, got 0 bytes")
    if len(data) > settings.max_bytes:
        raise Refused(Reason.TOO_MANY_BYTES, f"expected at most {settings.max_bytes} bytes, got {len(data)}")


@dataclass(frozen=True)
class Decoded:
    """An upright picture of mode RGB, L or CMYK; its full size as displayed; its ICC profile, which defines its colours."""

    picture: Image.Image
    width: int
    height: int
    profile: bytes | None


def decode(data: bytes, settings: ImageConfig) -> Decoded:
    """The picture in `data`: the first frame of an animation; a large JPEG at 1/2, 1/4 or 1/8 scale, never below twice image_px.

    Raises Refused for everything that is not a whole, usable picture, and MemoryError. No bytes raise any other exception.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decompression bombs meet our own limit; other odd files are decoded or refused
            _check_webp_canvas(data, settings)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                _check_header(width, height, settings)
                image.draft(None, (2 * settings.image_px, 2 * settings.image_px))  # JPEG only: decodes fewer coefficients
                is_reduced = image.size != (width, height)
                image.load()
                if not is_reduced:
                    width, height = image.size  # Pillow turns a TIFF upright while loading it
                picture = colour.flatten(image)
                turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
                if turn is not None:
                    picture = picture.transpose(turn)
                if turn in _SIDEWAYS:
                    width, height = height, width
                return Decoded(picture, width, height, image.info.get("icc_profile"))
    except (Refused, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Refused(Reason.NOT_AN_IMAGE, f"expected {', '.join(FORMATS)}; the file starts with {data[:16]!r}") from None
    except Image.DecompressionBombError as error:
        raise Refused(Reason.TOO_MANY_PIXELS, str(error)) from None
    except Exception as error:  # noqa: BLE001 - decoders raise any exception on damaged bytes; the row keeps the text
        raise Refused(Reason.UNDECODABLE, f"{type(error).__name__}: {error}") from None


def _check_header(width: int, height: int, settings: ImageConfig) -> None:
    short, long = sorted((width, height))
    if width * height > settings.max_pixels:
        raise Refused(Reason.TOO_MANY_PIXELS, f"expected at most {settings.max_pixels} pixels, got {width}x{height}")
    if short < 1 or long > settings.max_aspect * short:
        raise Refused(Reason.EXTREME_ASPECT, f"expected at most {settings.max_aspect:g} to 1, got {width}x{height}")
    if short < settings.min_side_px:
        raise Refused(Reason.TOO_SMALL, f"expected at least {settings.min_side_px} px a side, got {width}x{height}")


def _check_webp_canvas(data: bytes, settings: ImageConfig) -> None:
    """Raise Refused when a WebP of the extended kind claims too many pixels (RFC 9649, 2.7).

    Pillow allocates two canvases of 4 bytes per pixel when it opens the file, before `_check_header` knows the size.
    """
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and len(data) >= 30:
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        _check_header(width, height, settings)
