"""Vectors (B, D, 1, 1) instead of pictures: trained by the loop, kept in a checkpoint, drawn under guidance."""

from dataclasses import replace

import pytest
import torch

from semantica.conditioning.values import Conditioning
from semantica.config import from_dict, to_dict
from semantica.denoiser.configs import DenoiserConfig, StageConfig
from semantica.denoiser.sizes import num_parameters
from semantica.denoiser.uvit import UViT
from semantica.diffusion.samplers import sample
from semantica.diffusion.settings import SAMPLERS, SamplerConfig, ScheduleConfig
from semantica.errors import ConfigError, DataError
from semantica.generation.generate import SampleNoise, sample_pictures
from semantica.generation.model import Model
from semantica.generation.settings import GenerateConfig
from semantica.pairs.loader import Batch
from semantica.planning.memory import example_bytes
from semantica.training.checkpoint import Provenance, open_checkpoint
from semantica.training.checkpoint.save import write_checkpoint
from semantica.training.feed import batches_of
from semantica.training.loop import Hooks, fit
from semantica.training.recipe import EmaConfig, OptimizerConfig, TrainConfig

D = 6
POINTS = torch.tensor([[0.9, -0.6, 0.0, 0.3, -0.9, 0.5], [-0.5, 0.8, 0.4, -0.7, 0.1, -0.2]])
SIDES = torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.0, 0.0, -3.0, 0.0]])  # the pooled embedding that each point has
DENOISER = DenoiserConfig(
    channels=D,
    resolution_px=1,
    patch_px=1,
    stages=(StageConfig(channels=64, num_blocks=1, kind="transformer"),),
    conditioning="film",
    token_dim=1,
    num_tokens=1,
    pooled_dim=4,
    noise_embedding_dim=64,
    head_dim=16,
)
CONFIG = TrainConfig(
    denoiser=DENOISER,
    schedule=ScheduleConfig(resolution_px=1, noise_resolution_px=1),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=10),
    ema=EmaConfig(decay=0.98, warmup=10),
    num_steps=250,
    batch_size=32,
    num_lanes=4,
    checkpoint_every=250,
)


def conditioning(which):
    return Conditioning.of(torch.zeros(len(which), 1, 1), SIDES[which])


class Vectors:
    """Even slots hold the first point, odd ones the second."""

    def batch(self, step):
        which = torch.arange(CONFIG.batch_size) % 2
        return Batch(POINTS[which][:, :, None, None], conditioning(which), range(CONFIG.batch_size))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors") / "model"
    provenance = Provenance({"identity": {"name": "numbers"}}, "e", "s")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fit(CONFIG, Vectors(), provenance, Hooks(lambda report: None, lambda state: write_checkpoint(folder, state.snapshot())))
    torch.set_num_threads(threads)
    return Model.of(open_checkpoint(folder))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("w", [0.0, 0.3])
def test_vectors_that_were_trained_on_are_drawn_by_every_sampler(model, name, w):
    which = torch.tensor([0, 1, 1, 0, 0, 1])
    noise = SampleNoise(0, [f"v/{i}" for i in range(6)], model.shape)
    with torch.no_grad():
        config = SamplerConfig(name=name, num_steps=20)
        x = sample(model.bind(conditioning(which), w), noise.draw(), model.schedule, noise, config)
    assert x.shape == (6, D, 1, 1)
    own, other = ((x[:, :, 0, 0] - POINTS[rows]).norm(dim=1) for rows in (which, 1 - which))
    assert (own < other / 2).all()
    drawn = sample_pictures(model, conditioning(which), ["a"] * 6, w, GenerateConfig(sampler=SamplerConfig(num_steps=2)))
    assert drawn.shape == (6, D, 1, 1)


def test_a_network_takes_the_channels_of_its_configuration_only(model):
    with pytest.raises(DataError, match=r"z must have shape \(2, 6, 1, 1\), got \(2, 3, 1, 1\)"):
        model.bind(conditioning(torch.tensor([0, 1])))(torch.zeros(2, 3, 1, 1), torch.zeros(2))
    with pytest.raises(ConfigError, match="channels must be at least 1"):
        replace(DENOISER, channels=0)


def test_training_on_pictures_refuses_a_network_of_vectors(tmp_path):
    with pytest.raises(ConfigError, match="channels must be 3 to train on pictures, got 6"):
        batches_of(CONFIG)


def test_a_configuration_from_before_there_were_channels_is_one_of_pictures():
    old = to_dict(replace(DENOISER, channels=3))
    del old["channels"]
    read = from_dict(DenoiserConfig, old)
    assert read.shape == (3, 1, 1)
    assert UViT(read).head_in.weight.shape[1] == 3


def test_more_channels_cost_only_the_first_and_the_last_layer():
    more = replace(DENOISER, channels=D + 10)
    assert num_parameters(more) - num_parameters(DENOISER) == 10 * (64 + 64 + 1)
    assert example_bytes(more) - example_bytes(DENOISER) == 10 * 2 * 4  # x and its noise
