"""What stands beside the figures of samples of jobs.generate: how those samples were drawn and measured, whatever was chosen."""

import numpy as np
import pytest

from semantica.config import to_dict
from semantica.data.dataset import Manifest
from semantica.diffusion.settings import GuidanceConfig, SamplerConfig
from semantica.encoders.encoder import EncoderIdentity
from semantica.generation.settings import GenerateConfig
from semantica.measure.similarity import own_and_other
from semantica.metrics.evaluate import Figures, GuidanceFigures
from semantica.metrics.sample_figures import sample_figures, sampler_words
from semantica.metrics.settings import EvaluateConfig

ENCODER = EncoderIdentity("e", "0" * 64, 56, (0.5,) * 3, (0.5,) * 3, "float32", 16, 8, 8)
HOW = GenerateConfig(sampler=SamplerConfig(name="ddim", num_steps=7, clip=False), use_ema=False, seed=3)


@pytest.fixture
def found():
    """The figures by name of samples that were drawn otherwise than by default."""
    eye = np.eye(3, dtype=np.float32)
    similarity = own_and_other(eye[[0, 1, 2, 0, 1, 2]], eye, np.array([0, 1, 2, 0, 1, 2]), None)
    at = GuidanceFigures(guidance=0.5, num_samples=6, frechet=1.0, fid=2.0, perceptual=0.5, similarity=similarity)
    figures = Figures((at,), {"copy": 3.0, "train": 4.0, "noise": 5.0}, 6.0, 9, 4, 3)
    drawn = Manifest("samples", to_dict(HOW), {}, {}, {"resolution_px": 16}, ())
    source = Manifest("encodings", {}, {}, {}, {"encoder": ENCODER.to_dict()}, ())
    return {f.name: f for f in sample_figures(figures, EvaluateConfig(guidance=0.5), drawn, source, "lpips-alex")}


@pytest.mark.parametrize(
    ("name", "extractor", "n"),
    [
        ("fd_samples", "encoder", "n = 6 against 9"),
        ("fid_samples", "inception", "n = 6 against 9"),
        ("perceptual_distance", "lpips-alex", "n = 6;"),
        ("similarity_difference", "encoder", "n = 6;"),
    ],
)
def test_a_figure_of_samples_says_everything_that_it_depends_on(found, name, extractor, n):
    stated = found[name].protocol
    for part in ("16 px", n, extractor, "7 steps", "w = 0.5", "raw weights", "seed 3", "DDIM", "3 conditioning images"):
        assert part in stated.sentence
    assert stated.resize


@pytest.mark.parametrize(("name", "n"), [("fd_copy", 6), ("fd_train", 4), ("fd_noise", 6), ("fid_copy", 6)])
def test_what_was_not_drawn_has_no_w_steps_weights_or_seed(found, name, n):
    stated = found[name].protocol
    assert (stated.num_samples, stated.num_reference) == (n, 9)
    assert (stated.guidance, stated.num_steps, stated.ema, list(stated.seeds)) == (None, None, None, [])


def test_the_sampler_is_the_one_that_was_used():
    assert sampler_words(to_dict(HOW)) == "DDIM, 7 steps, x_hat not clipped"
    assert sampler_words(to_dict(GenerateConfig())) == "DDPM, 256 steps, interpolation 0.2, x_hat clipped"
    beyond = GenerateConfig(beyond=GuidanceConfig(rescale=0.7), similarity=0.5)
    assert sampler_words(to_dict(beyond)).endswith("x_hat clipped, guidance rescale 0.7, asked for similarity 0.5")
