import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from semantica.measure.networks.resize import bicubic_weights, resize_as_clean_fid, resize_as_pillow, resize_as_tensorflow1

SIZES = [(64, 64), (37, 51), (400, 320), (299, 299), (1, 1), (2, 600), (300, 299)]


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pillow_in_floats(picture, size_px):
    """Each channel in Pillow's float mode, then cut to the levels: what clean-fid's "clean" mode does."""
    channels = [Image.fromarray(c.astype(np.float32)).resize((size_px, size_px), Image.Resampling.BICUBIC) for c in picture]
    return np.stack([np.asarray(c).clip(0, 255) for c in channels])


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (37, 51), (400, 320), (299, 299)])
def test_the_resize_equals_torch_fidelitys_bit_for_bit(size):
    module = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = noise(2, 3, *size).float()
    expected = module.interpolate_bilinear_2d_like_tensorflow1x(images, (299, 299), align_corners=False)
    assert torch.equal(resize_as_tensorflow1(images, 299), expected)


def test_the_resize_keeps_a_ramp_and_repeats_the_last_pixel():
    ramp = torch.tensor([0.0, 2.0, 4.0]).expand(1, 1, 3, 3).contiguous()
    assert resize_as_tensorflow1(ramp, 6)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 4]


@pytest.mark.parametrize("size", SIZES)
def test_the_clean_resize_is_pillows_of_floats_to_the_last_digit_of_float32(size):
    images = noise(2, 3, *size)
    expected = np.stack([pillow_in_floats(picture, 299) for picture in images.numpy()])
    # 255 in float32 has steps of 1.5e-5: two of them.
    np.testing.assert_allclose(resize_as_clean_fid(images, 299).numpy(), expected, rtol=0, atol=3.1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_the_resize_of_levels_equals_pillows_bit_for_bit(size):
    images = noise(2, 3, *size)
    pictures = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in images]
    expected = np.stack([np.asarray(p.resize((224, 224), Image.Resampling.BICUBIC)) for p in pictures])
    np.testing.assert_array_equal(resize_as_pillow(images, 224).permute(0, 2, 3, 1).numpy(), expected)


@given(st.integers(1, 80), st.integers(1, 80))
def test_the_weights_of_an_output_pixel_sum_to_one_and_are_symmetric(num_in, num_out):
    weights = bicubic_weights(num_in, num_out)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(weights[::-1, ::-1], weights, atol=1e-12)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_an_even_picture_stays_even(height, width, level):
    images = torch.full((1, 3, height, width), level, dtype=torch.uint8)
    assert torch.equal(resize_as_pillow(images, 30), torch.full((1, 3, 30, 30), level, dtype=torch.uint8))
    torch.testing.assert_close(resize_as_clean_fid(images, 30), torch.full((1, 3, 30, 30), float(level)), rtol=0, atol=3.1e-5)
