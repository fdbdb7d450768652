"""The golden set of files, good and bad: the decoder in a child says of each what `normalise` says here, to the byte and the word.

What must come of the good ones, pixel by pixel, is in test_images and test_colour.
"""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from semantica.episodes.decoder import Decoder, InProcessDecoder
from semantica.episodes.images import ImageConfig
from semantica.episodes.quarantine import Reason, Refused

SMALL = ImageConfig(image_px=32, min_side_px=8)


def encoded(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def noise(seed=0, side=48, mode="RGB"):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).convert(mode)


GOOD = encoded(noise())


def outcome(decode, data):
    """All that is said of a file."""
    try:
        image = decode(data)
    except Refused as refused:
        return refused.reason, refused.detail
    return image.data, image.pixels.mode, image.pixels.tobytes(), image.original_width, image.original_height


@pytest.fixture(scope="module")
def decoder():
    with Decoder(SMALL) as decoder:
        yield decoder


def bomb():
    """A PNG whose header claims 50,000 x 50,000 pixels."""
    data = bytearray(GOOD)
    data[16:24] = struct.pack(">II", 50_000, 50_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def good_files():
    """A file of every kind that the web serves; test_images says what must come of each."""
    modes = {"PNG": ("RGB", "RGBA", "LA", "P", "1"), "GIF": ("P",), "BMP": ("RGB",), "DIB": ("RGB",), "TIFF": ("RGB", "CMYK"),
             "JPEG": ("RGB", "CMYK", "L"), "WEBP": ("RGB", "RGBA"), "AVIF": ("RGB",)}  # fmt: skip
    files = {f"{mode} {format}": encoded(noise(mode=mode), format) for format in modes for mode in modes[format]}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"EXIF {orientation}"] = encoded(noise().resize((48, 32)), "JPEG", exif=exif)
    files["reduced"] = encoded(noise(side=700), "JPEG")
    files["16 bits"] = encoded(Image.fromarray(np.linspace(0, 65535, 48 * 48).reshape(48, 48).astype(np.uint16)))
    files["clear palette"] = encoded(noise(mode="P"), transparency=3)
    for format in ("GIF", "WEBP", "PNG"):
        files[f"animated {format}"] = encoded(noise(), format, save_all=True, append_images=[noise(1)], duration=50)
    return files


def bad_files():
    """(the file, why it is refused) of every kind that is none of ours."""
    return {
        "empty": (b"", Reason.EMPTY_FILE),
        "HTML named .jpg": (b"<!doctype html><title>404</title>", Reason.NOT_AN_IMAGE),
        "not UTF-8": (b"\xff\xfe\x80\xed\xa0\x80", Reason.NOT_AN_IMAGE),
        "another format": (encoded(noise(), "PPM"), Reason.NOT_AN_IMAGE),
        "truncated PNG": (GOOD[:-60], Reason.UNDECODABLE),
        "truncated JPEG": (encoded(noise(), "JPEG")[:1000], Reason.UNDECODABLE),
        "1xN": (encoded(Image.new("RGB", (1, 500))), Reason.EXTREME_ASPECT),
        "icon": (encoded(noise(side=7)), Reason.TOO_SMALL),
        "one colour": (encoded(Image.new("RGB", (32, 32))), Reason.BLANK),
        "bomb": (bomb(), Reason.TOO_MANY_PIXELS),
        "too long": (bytes(SMALL.max_bytes + 1), Reason.TOO_MANY_BYTES),
    }


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in good_files().items()])
def test_the_child_gives_the_pixels_that_this_process_gives(data, decoder):
    expected = InProcessDecoder(SMALL)(data)
    got = decoder(data)
    assert got.pixels.tobytes() == expected.pixels.tobytes()
    assert (got.data, got.original_width, got.original_height) == (
        expected.data,
        expected.original_width,
        expected.original_height,
    )


@pytest.mark.parametrize(("data", "reason"), [pytest.param(*file, id=name) for name, file in bad_files().items()])
def test_the_child_refuses_what_this_process_refuses_in_the_same_words(data, reason, decoder):
    expected = outcome(InProcessDecoder(SMALL), data)
    assert outcome(decoder, data) == expected
    assert expected[0] == reason
