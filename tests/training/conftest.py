from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def tiny(make, tmp_path_factory):
    """A real dataset and a run on it: tiny.config(**changes), tiny.loader(config, rank, world), tiny.provenance."""
    from semantica.denoiser.uvit import DenoiserConfig, StageConfig
    from semantica.diffusion.schedule import ScheduleConfig
    from semantica.pairs.loader import PairLoader
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
            folder / "encodings",
            folder / "selection",
            seed=settings.seed,
            batch_size=settings.batch_size,
            num_lanes=settings.num_lanes,
            resolution_px=16,
            rank=rank,
            world=world,
        )

    return SimpleNamespace(config=config, loader=loader, provenance=Provenance({"identity": {"name": "numbers"}}, "e", "s"))
