"""One denoiser with 2×2 patching and without: the pair that Fig. 2 of the paper compares, for every preset."""

from __future__ import annotations

from dataclasses import replace

from semantica.denoiser.configs import DenoiserConfig, StageConfig


def shapes(denoiser: DenoiserConfig) -> tuple[DenoiserConfig, DenoiserConfig]:
    """(with 2×2 patching, without): the preset's own shape is one of the two, and the other differs by the finest stage."""
    if denoiser.patch_px == 1:
        return replace(denoiser, patch_px=2, stages=denoiser.stages[1:]), denoiser
    finest = StageConfig(channels=denoiser.stages[0].channels, num_blocks=2, kind="conv")
    return denoiser, replace(denoiser, patch_px=1, stages=(finest, *denoiser.stages))
