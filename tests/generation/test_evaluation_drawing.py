"""Batches of an evaluation: a sample has the same pixels whatever is drawn beside it, from the noise of semantica generate."""

import pytest
import torch

from semantica.conditioning.values import Conditioning
from semantica.data.pictures import PictureRef
from semantica.data.schemas import SAMPLES
from semantica.diffusion.settings import SamplerConfig
from semantica.evaluation.drawing import Sample, SampleShard, draw, sample_rows
from semantica.evaluation.requests import Request
from semantica.generation.generate import sample_pictures
from semantica.generation.model import Model
from semantica.generation.settings import GenerateConfig
from semantica.training.checkpoint import open_checkpoint

SETTINGS = GenerateConfig(sampler=SamplerConfig(num_steps=3), batch_size=6)


@pytest.fixture(scope="module")
def model(runs):
    return Model.of(open_checkpoint(runs.plain.checkpoint / "model"))


def cond(numbers, model):
    """Conditioning of numbered pictures."""
    config = model.network.config
    generators = [torch.Generator().manual_seed(n) for n in numbers]
    tokens = torch.stack([torch.randn((config.num_tokens, config.token_dim), generator=g) for g in generators])
    pooled = torch.stack([torch.randn((config.pooled_dim,), generator=g) for g in generators])
    return Conditioning.of(tokens, pooled)


def batch(numbers, guidance=0.5, seed=3):
    requests = [Request("m", "d", f"picture{n}", n % 2, guidance, seed) for n in numbers]
    samples = [Sample(r.name, PictureRef(r.image_id, f"episode {r.image_id}", 0, 0), r.index) for r in requests]
    return SampleShard("shard", guidance, seed, tuple(samples))


@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_a_sample_is_the_same_to_the_last_bit_alone_and_among_others(model, guidance):
    whole = draw(model, cond(range(6), model), batch(range(6), guidance), SETTINGS)
    assert len({picture.numpy().tobytes() for picture in whole}) == 6
    for numbers in ([4], [5, 1], [3, 2, 0, 4]):
        some = draw(model, cond(numbers, model), batch(numbers, guidance), SETTINGS)
        assert torch.equal(some, whole[torch.tensor(numbers)])


def test_a_sample_is_that_of_generate_with_the_same_seed(model):
    numbers = range(6)
    names = [f"picture{n}/{n % 2}" for n in numbers]  # as semantica generate names them
    config = GenerateConfig(sampler=SETTINGS.sampler, batch_size=6, seed=3)
    expected = sample_pictures(model, cond(numbers, model), names, 0.5, config, max_rows=12)
    assert torch.equal(draw(model, cond(numbers, model), batch(numbers), SETTINGS), expected)
    other = draw(model, cond(numbers, model), batch(numbers, seed=4), SETTINGS)
    assert not torch.equal(other, expected)


def test_rows_carry_the_name_and_what_it_says(model):
    drawn = batch([0, 3])
    table = sample_rows(drawn, draw(model, cond([0, 3], model), drawn, SETTINGS))
    assert table.schema == SAMPLES
    assert table["sample_id"].to_pylist() == ["m-d/picture0/0/0.5/3", "m-d/picture3/1/0.5/3"]
    assert table["episode_id"].to_pylist() == ["episode picture0", "episode picture3"]
    assert table["sample_index"].to_pylist() == [0, 1]
