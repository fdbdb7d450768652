from dataclasses import replace
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def tiny(make, tmp_path_factory):
    """A real dataset and a run on it: tiny.config(**changes), tiny.loader(config, rank, world), tiny.provenance.

    tiny.folder holds its encodings and its selection.
    """
    from semantica.denoiser.configs import DenoiserConfig, StageConfig
    from semantica.diffusion.settings import ScheduleConfig
    from semantica.pairs.loader import Batches, LoaderWorker, PairLoader, open_pairs
    from semantica.training.checkpoint import Provenance
    from semantica.training.recipe import EmaConfig, OptimizerConfig, TrainConfig

    folder = tmp_path_factory.mktemp("tiny")
    make.encodings(folder / "encodings")
    make.scores(folder / "scores", folder / "encodings")
    make.selection(folder / "selection", folder / "scores", low=-1.0, high=1.0)
    denoiser = DenoiserConfig(
        resolution_px=16,
        patch_px=2,
        stages=(
            StageConfig(channels=16, num_blocks=1, kind="conv"),
            StageConfig(channels=16, num_blocks=1, kind="transformer", dropout=0.2),
        ),
        conditioning="both",
        token_dim=8,
        num_tokens=3,
        pooled_dim=8,
        noise_embedding_dim=16,
        head_dim=8,
        norm_groups=4,
    )

    def config(**changes):
        values = {
            "denoiser": denoiser,
            "schedule": ScheduleConfig(resolution_px=16),
            "optimizer": OptimizerConfig(learning_rate=3e-3, warmup_steps=3),
            "ema": EmaConfig(decay=0.9, warmup=2),
            "num_steps": 6,
            "batch_size": 8,
            "num_lanes": 4,
            "log_every": 2,
            "checkpoint_every": 3,
            "conditioning_dropout": 0.25,
        }
        return TrainConfig(**(values | changes))

    def loader(settings, rank=0, world=1):
        return PairLoader(
            open_pairs(folder / "encodings", folder / "selection"),
            Batches(settings.seed, settings.batch_size, settings.num_lanes, resolution_px=16),
            LoaderWorker(rank, world),
        )

    return SimpleNamespace(
        folder=folder, config=config, loader=loader, provenance=Provenance({"identity": {"name": "numbers"}}, "e", "s")
    )


@pytest.fixture(scope="session")
def living(tiny):
    """living(step, network): a training by random gradients after `step` updates. living.on(state): after one more, in place."""
    import torch

    from semantica.training.checkpoint import TrainState
    from semantica.training.ema import Ema
    from semantica.training.loop import initial_network
    from semantica.training.step import make_optimizer, update

    def on(state):
        generator = torch.Generator().manual_seed(state.step)
        for parameter in state.network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        update(state.network, state.optimizer, state.config.optimizer, 1e-2)
        state.ema.update()
        return replace(state, step=state.step + 1)

    class Living:
        def __call__(self, step, network=None):
            config = tiny.config()
            network = network or initial_network(config)
            optimizer = make_optimizer(network, config.optimizer)
            state = TrainState(network, Ema(network, config.ema), optimizer, config, 0, tiny.provenance, {"skipped": 3})
            while state.step < step:
                state = on(state)
            return state

    Living.on = staticmethod(on)
    return Living()
