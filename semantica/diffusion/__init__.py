"""The mathematics of diffusion in plain torch: schedule, forward process, loss, guidance and samplers.

Knows no network: everything here takes a `Denoise = (z, logsnr) -> x_hat` that is bound to its conditioning. z, x, eps, v are
(B, C, H, W) with any number of channels, so that vectors are pictures of one pixel, (B, D, 1, 1); logsnr is (B,).
"""
