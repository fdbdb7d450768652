"""Pictures -> pictures at the size of a metric's network, resized as the project that defined the metric does.

The three resizes differ, and change a Fréchet distance more than samplers do (Parmar 2022), so an extractor's identity names its
resize. Pillow's bicubic filter is separable and linear. Here it is two matrix products in float64 for a whole batch, on any device,
with Pillow's own coefficients and rounding. A picture that is not square is squashed, as in all three projects.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor

_LEVEL_BITS = 22  # of a coefficient when Pillow resizes 8-bit levels in integers: 32 minus 8 for a level and 2 for overshoot


def resize_as_tensorflow1(images: Float32[Tensor, "b c h w"], size_px: int) -> Float32[Tensor, "b c size size"]:
    """Square pictures of `size_px`, bilinear, output pixel i read at i·(in / out): tf.image.resize_bilinear of TensorFlow 1."""
    for dim in (3, 2):
        num_in = images.shape[dim]
        at = torch.arange(size_px, dtype=torch.float32, device=images.device) * torch.tensor(num_in / size_px)
        low = at.long()
        fraction = (at - low).view(-1, *[1] * (3 - dim))
        left = images.index_select(dim, low)
        right = images.index_select(dim, (low + 1).clamp_max(num_in - 1))
        images = left + (right - left) * fraction
    return images


def resize_as_clean_fid(images: UInt8[Tensor, "b c h w"], size_px: int) -> Float32[Tensor, "b c size size"]:
    """Square pictures of `size_px`, antialiased bicubic of each channel in floats, cut to 0..255 but not rounded (clean-fid)."""
    across, down = (_matrix(images.shape[dim], size_px, images.device) for dim in (3, 2))
    # Pillow keeps float32 between its two passes and adds in float64 within one.
    rows = (images.double() @ across.T).float()
    return (down @ rows.double()).float().clamp(0, 255)


def resize_as_pillow(images: UInt8[Tensor, "b c h w"], size_px: int) -> UInt8[Tensor, "b c size size"]:
    """Square pictures of `size_px`, antialiased bicubic of 8-bit levels: Image.resize of Pillow, bit for bit."""
    across, down = (_integers(_matrix(images.shape[dim], size_px, images.device)) for dim in (3, 2))
    # Whole numbers below 2^53: float64 products of them are exact, in any order of summation and on any device.
    rows = _levels(images.double() @ across.T)
    return _levels(down @ rows).to(torch.uint8)


def _integers(weights: Float64[Tensor, "m n"]) -> Float64[Tensor, "m n"]:
    return torch.trunc(weights * 2**_LEVEL_BITS + torch.sign(weights) * 0.5)


def _levels(sums: Float64[Tensor, "b c h w"]) -> Float64[Tensor, "b c h w"]:
    return torch.floor((sums + 2 ** (_LEVEL_BITS - 1)) / 2**_LEVEL_BITS).clamp(0, 255)


def _matrix(num_in: int, num_out: int, device: torch.device) -> Float64[Tensor, "out n"]:
    return torch.from_numpy(bicubic_weights(num_in, num_out)).to(device)


@lru_cache(maxsize=32)
def bicubic_weights(num_in: int, num_out: int) -> Float[np.ndarray, "out n"]:
    """Row i: the weight of each input pixel in output pixel i (sum 1). Keys 1981 with a = -1/2, widened when shrinking."""
    scale = num_in / num_out
    width = max(scale, 1.0)
    support = 2.0 * width
    centre = (np.arange(num_out) + 0.5) * scale
    first = np.maximum(np.trunc(centre - support + 0.5), 0)
    stop = np.minimum(np.trunc(centre + support + 0.5), num_in)
    pixel = np.arange(num_in)
    weights = _keys((pixel[None] - centre[:, None] + 0.5) / width)
    weights[(pixel[None] < first[:, None]) | (pixel[None] >= stop[:, None])] = 0
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _keys(x: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
