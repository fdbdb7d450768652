"""Optimal denoisers of known distributions, networks that depend on all they are given, and numbers keyed by a seed."""

import torch

from semantica.conditioning import Conditioning
from semantica.diffusion.process import denoise_with
from semantica.diffusion.schedule import alpha_sigma
from semantica.diffusion.settings import ScheduleConfig

SCHEDULE = ScheduleConfig(resolution_px=64)


def normal(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conditioning(num, seed=0):
    return Conditioning.of(normal((num, 2, 4), seed), normal((num, 3), seed + 1))


def noise_like(z, seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda _: torch.randn(z.shape, generator=generator, dtype=z.dtype)


def no_noise(index):
    raise AssertionError(f"noise asked for at step {index}")


def levels(values):
    return torch.tensor(values, dtype=torch.float64)


def mixture_denoiser(means, stds, weights):
    """E[x | z] for every pixel by itself from a mixture of N(mean, std²)."""
    mean, std, weight = (levels(values)[:, None, None, None, None] for values in (means, stds, weights))

    def denoise(z, logsnr, cond):
        alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
        variance = (alpha * std) ** 2 + sigma**2
        share = torch.softmax(weight.log() - variance.log() / 2 - (z - alpha * mean) ** 2 / (2 * variance), dim=0)
        return (share * (mean + alpha * std**2 / variance * (z - alpha * mean))).sum(0)

    return denoise


def gaussian_denoiser(mean, std):
    return mixture_denoiser([mean], [std], [1.0])


def two_point_denoiser(probability):
    """E[x | z] for x = 1 with the probability, else -1."""
    return mixture_denoiser([-1.0, 1.0], [0.0, 0.0], [1 - probability, probability])


def linear_network(z, logsnr, cond):
    """A network whose output depends on everything it is given, row by row."""
    return respond(z, logsnr, strength_of(cond))


def strength_of(cond):
    return torch.where(cond.is_null, 0.3, cond.pooled.mean(dim=(1, 2))) + 0.7 * cond.similarity.nan_to_num(0.0)


def respond(z, logsnr, strength):
    return (z * torch.sigmoid(logsnr)[:, None, None, None] + strength[:, None, None, None]).sin()


class Preparing:
    """`linear_network`, with what it needs of cond made by `prepare`; counts the rows of every call of both."""

    def __init__(self):
        self.prepared, self.called = [], []

    def prepare(self, cond):
        self.prepared.append(len(cond))
        return strength_of(cond)

    def __call__(self, z, logsnr, strength):
        self.called.append(len(z))
        return respond(z, logsnr, strength)


NETWORK = denoise_with(linear_network)
LEVELS = levels([-2.0, 0.0, 2.0])


class Counting:
    """NETWORK; counts the rows of every call."""

    def __init__(self):
        self.batches = []

    def __call__(self, z, logsnr, cond):
        self.batches.append(len(z))
        return NETWORK(z, logsnr, cond)
