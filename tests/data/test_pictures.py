"""Pixels of stored pictures: area-averaged, exact, and scaled to what training sees."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from semantica.data.pictures import decode
from semantica.pairs.loader import to_unit


def test_a_larger_picture_is_reduced_by_the_mean_of_its_pixels(make):
    large = decode(make.picture(5, side=32), 32).float()
    means = large.unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2))
    # Pillow averages along rows, then along columns, and rounds after each: half a level twice.
    assert (decode(make.picture(5, side=32), 16).float() - means).abs().max() <= 1


@pytest.mark.parametrize(
    ("mode", "form"),
    [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGB", "WEBP")],
)
@pytest.mark.parametrize("side", [24, 12])
def test_pixels_are_those_that_pillow_converts(mode, form, side):
    levels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels).convert(mode).save(stream, form)
    rgb = Image.open(io.BytesIO(stream.getvalue())).convert("RGB")
    expected = np.array(rgb if side == 24 else rgb.resize((side, side), Image.Resampling.BOX)).transpose(2, 0, 1)
    pixels = decode(stream.getvalue(), side)
    assert np.array_equal(pixels.numpy(), expected)
    unit, out = to_unit(pixels), torch.empty(3, side, side)
    assert np.array_equal(unit.numpy(), expected.astype(np.float32) / np.float32(127.5) - np.float32(1))
    assert to_unit(pixels, out=out) is out
    assert torch.equal(out, unit)


def test_unit_range_ends_at_black_and_white():
    assert to_unit(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1))[:, 0, 0, 0].tolist() == [-1, 1]
