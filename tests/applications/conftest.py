"""A real run in miniature, and the same model with the optimal denoiser of a Gaussian in place of its network."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from tests.generation.conftest import model, pictures, runs

__all__ = ["model", "pictures", "runs"]


@pytest.fixture(scope="module")
def rich(runs):
    import semantica

    return semantica.load(runs.rich.checkpoint, "cpu", runs.rich.encoder)


@pytest.fixture
def with_denoiser(model):
    """with_denoiser(denoise): the model as if `denoise` were its network, and `.model.calls`, the rows of each call."""
    from semantica.generation.model import Model

    @dataclass(frozen=True)
    class Exact(Model):
        denoise: object = None
        calls: list = field(default_factory=list)

        def bind(self, cond, w=0.0, beyond=None):
            def counted(z, logsnr):
                self.calls.append(len(z))
                return self.denoise(z, logsnr)

            return counted

    return lambda denoise: replace(model, model=Exact(**vars(model.model), denoise=denoise))


@pytest.fixture
def x():
    """Two pictures in [-1, 1]."""
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 1.6 - 0.8
