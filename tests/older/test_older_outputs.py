"""What an older version wrote is opened, counts as done and is trained on.

outputs.json holds what commit f049af4 wrote into the manifests of every stage, a checkpoint and a release. Weights are no part of
it: they are drawn here, by the names and shapes that were written then.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from semantica.conditioning.values import Conditioning
from semantica.config import override
from semantica.config.identity import differences, from_record
from semantica.data.location import file_sha256
from semantica.diffusion.samplers import ddim_invert, levels_of, sample
from semantica.diffusion.settings import GuidanceConfig, SamplerConfig
from semantica.encoders.settings import EncodeConfig
from semantica.episodes.ingest import IngestConfig
from semantica.generation.model import Model
from semantica.generation.release import read_release
from semantica.generation.settings import GenerateConfig
from semantica.pairs.selection import BandConfig
from semantica.training.checkpoint import open_checkpoint
from semantica.training.checkpoint.format import CONFIG, MANIFEST
from semantica.training.ema import Ema
from semantica.training.loop import initial_network
from semantica.training.recipe import TrainConfig
from semantica.training.step import make_optimizer

OLDER = json.loads((Path(__file__).parent / "outputs.json").read_text())
STAGES = {
    "episodes": IngestConfig,
    "html": IngestConfig,
    "encodings": EncodeConfig,
    "selection": BandConfig,
    "checkpoint": TrainConfig,
    "samples": GenerateConfig,
}


def drawn(prefix=""):
    """Weights of the names and shapes of then."""
    tensors = {}
    for name, shape in OLDER["tensors"].items():
        seed = int.from_bytes(hashlib.sha256(f"{prefix}{name}".encode()).digest()[:4])
        tensors[f"{prefix}{name}"] = 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return tensors


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a checkpoint as it was written then."""
    folder = tmp_path_factory.mktemp("checkpoint")
    moments = drawn("exp_avg/") | {name: value**2 for name, value in drawn("exp_avg_sq/").items()}
    for kind, tensors in {"model": drawn(), "ema": drawn(), "optimizer": moments}.items():
        save_file(tensors, folder / f"{kind}.safetensors")
    (folder / CONFIG).write_text(json.dumps(OLDER["checkpoint"], indent=1))
    files = [
        {
            "name": name,
            "kind": name.removesuffix(".safetensors").removesuffix(".json"),
            "num_bytes": (folder / name).stat().st_size,
            "sha256": file_sha256(folder / name),
            "first": "",
            "last": "",
        }
        for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", CONFIG)
    ]
    facts = {"format": 2, "files": files}
    seal = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps({**facts, "seal": seal}, indent=1) + "\n")
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_settings_that_a_stage_recorded_are_read_and_count_as_the_same_work(stage):
    recorded = dict(OLDER["manifests"][stage]["config"])
    recorded.pop("scores", None)  # where the scores of a selection lie, which is recorded beside its settings
    config = from_record(STAGES[stage], recorded)
    assert differences(recorded, config) == []
    assert differences({**recorded, "a_setting_of_another_version": 1}, config)


def test_a_checkpoint_is_trained_on_with_its_weights_averages_and_moments(checkpoint):
    opened = open_checkpoint(checkpoint)
    network = initial_network(opened.config)
    ema, optimizer = Ema(network, opened.config.ema), make_optimizer(network, opened.config.optimizer)
    opened.restore(network, ema, optimizer)
    assert (opened.step, ema.num_updates, opened.config.num_steps) == (50, 50, 50)
    for prefix, values in {"": dict(network.named_parameters()), "exp_avg/": moments(network, optimizer, "exp_avg")}.items():
        expected = drawn(prefix)
        assert values.keys() == {name.removeprefix(prefix) for name in expected}
        assert all(torch.equal(value, expected[f"{prefix}{name}"]) for name, value in values.items())


def moments(network, optimizer, which):
    return {name: optimizer.state[parameter][which] for name, parameter in network.named_parameters()}


def test_a_release_is_read(tmp_path, checkpoint):
    save_file(drawn(), tmp_path / "model.safetensors")
    record = {**OLDER["release"], "weights_sha256": file_sha256(tmp_path / "model.safetensors")}
    (tmp_path / "config.json").write_text(json.dumps(record))
    release, network, _ = read_release(tmp_path)
    assert (release.picture_px, release.band.high, release.sampler.num_steps) == (32, 0.95, 256)
    assert release.denoiser == open_checkpoint(checkpoint).config.denoiser
    assert all(torch.equal(value, drawn()[name]) for name, value in network.named_parameters())


# Mean and standard deviation of what commit f049af4 drew with these weights; another processor rounds otherwise, so to 1e-3.
REFINEMENTS = {
    "plain": {},
    "all": {"threshold": 0.95, "interval": [-4.0, 4.0], "rescale": 0.5, "parallel": 0.3, "max_norm": 3.0, "momentum": 0.25},
    "request": {"request": 1.5},
}
FIGURES = {
    ("ddpm", "plain"): [-0.056489, 0.691426],
    ("ddim", "plain"): [-0.061578, 0.583024],
    ("dpm_solver", "plain"): [-0.054324, 0.713998],
    ("ddim_invert", "plain"): [0.099416, 0.997168],
    ("ddpm", "all"): [-0.036009, 0.496084],
    ("ddim", "all"): [-0.052316, 0.480880],
    ("dpm_solver", "all"): [-0.037602, 0.504558],
    ("ddim_invert", "all"): [0.106093, 0.972811],
    ("ddpm", "request"): [-0.058733, 0.686488],
    ("ddim", "request"): [-0.063122, 0.573059],
    ("dpm_solver", "request"): [-0.055037, 0.710106],
    ("ddim_invert", "request"): [0.105391, 0.957076],
}


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver", "ddim_invert"])
@pytest.mark.parametrize("refinement", REFINEMENTS)
def test_samples_are_those_of_then(sampler, refinement, checkpoint):
    model = Model.of(open_checkpoint(checkpoint))
    generator = torch.Generator().manual_seed(11)
    tokens, pooled = torch.randn((3, 2, 5, 32), generator=generator), torch.randn((3, 2, 32), generator=generator)
    present = torch.tensor([[True, True], [True, False], [True, True]])
    cond = Conditioning.of(tokens, pooled, torch.tensor([0.8, float("nan"), 0.1]), present)
    denoise = model.bind(cond, 0.5, override(GuidanceConfig(), REFINEMENTS[refinement]))
    if sampler == "ddim_invert":
        levels = levels_of(SamplerConfig(name="ddim", num_steps=6), model.schedule)
        x = ddim_invert(denoise, (noise_at(-2) / 2).clamp(-1, 1), levels, num_iterations=3)
    else:
        x = sample(denoise, noise_at(-1), model.schedule, noise_at, SamplerConfig(name=sampler, num_steps=6))
    assert [float(x.mean()), float(x.std())] == pytest.approx(FIGURES[sampler, refinement], rel=1e-3)


def noise_at(step):
    return torch.randn((3, 3, 32, 32), generator=torch.Generator().manual_seed(1000 + step))
