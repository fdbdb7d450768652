"""The mathematics of diffusion in plain torch: schedule, forward process, loss, guidance and samplers.

Knows no network: everything here takes a `Denoise = (z, logsnr, cond) -> x_hat`. z, x, eps, v are (B, 3, H, W); logsnr is (B,).
"""
