"""The denoiser: a U-ViT from (z, logsnr, conditioning) to v_hat, its named sizes, and what a size costs."""
