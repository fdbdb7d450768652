"""Samplers: a Denoise and noise in, pictures out. Each is one function with the signature of `Sampler`; `sampler_of` names them.

ancestral.py: DDPM with interpolated variance, the paper's. deterministic.py: DDIM and its inversion, DPM-Solver++(2M). contract.py:
what they share. The caller gives z at t = 1 and the noise of every step, so that both can be keyed by sample and no result depends
on how samples are batched or on which worker draws them.
"""

from semantica.diffusion.samplers.ancestral import ddpm, ddpm_posterior, ddpm_step
from semantica.diffusion.samplers.contract import Callback, Noise, Sampler, Step
from semantica.diffusion.samplers.deterministic import ddim, ddim_invert, ddim_step, dpm_solver
from semantica.diffusion.settings import SamplerConfig

__all__ = [
    "Callback",
    "Noise",
    "Sampler",
    "Step",
    "ddim",
    "ddim_invert",
    "ddim_step",
    "ddpm",
    "ddpm_posterior",
    "ddpm_step",
    "dpm_solver",
    "sampler_of",
]

_SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "dpm_solver": dpm_solver}


def sampler_of(config: SamplerConfig) -> Sampler:
    """The sampler that `config.name` names."""
    return _SAMPLERS[config.name]
