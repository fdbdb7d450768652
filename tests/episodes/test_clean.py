"""Near-duplicates are found, and pictures that merely share a layout are not; furniture counts are mergeable."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from semantica.episodes.clean import NearDuplicates, signature


def photograph(seed, side=64):
    """Smooth random colours, the nearest thing to a photograph that needs no file."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def clock(hour, colour="black"):
    """An icon on white: all clocks have the same gradients but for the hand."""
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((6, 6, 58, 58), outline=colour, width=4)
    angle = np.deg2rad(hour * 30 - 90)
    draw.line((32, 32, 32 + 20 * np.cos(angle), 32 + 20 * np.sin(angle)), fill=colour, width=4)
    return image


def as_jpeg(image, quality):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def looks_like(first, second):
    known = NearDuplicates(max_bits=4, max_levels=24)
    known.keep("first", signature(first))
    return known.original_of(signature(second)) == "first"


@pytest.mark.parametrize("seed", range(8))
def test_a_recompressed_or_rescaled_copy_is_a_near_duplicate(seed):
    image = photograph(seed)
    assert looks_like(image, image)
    assert looks_like(image, as_jpeg(image, 85))
    assert looks_like(image, image.resize((32, 32), Image.Resampling.BICUBIC).resize((64, 64), Image.Resampling.BICUBIC))


def test_different_pictures_are_not_near_duplicates():
    assert not any(looks_like(photograph(i), photograph(j)) for i in range(8) for j in range(i))


def test_icons_with_the_same_outline_are_told_apart():
    assert not any(looks_like(clock(i), clock(j)) for i in range(12) for j in range(i))
    assert not looks_like(clock(3, "red"), clock(3, "green"))
    assert signature(clock(3, (200, 0, 0))).gradients == signature(clock(3, (0, 102, 0))).gradients  # what the hash alone would say


def test_the_first_of_several_alike_is_named():
    known = NearDuplicates(max_bits=4, max_levels=24)
    for name in ("a", "b", "c"):
        known.keep(name, signature(photograph(ord(name))))
    assert known.original_of(signature(photograph(ord("b")))) == "b"
    assert known.original_of(signature(photograph(0))) is None
