"""The TPU path on XLA's CPU client with four devices, in the environment of `make test-tpu`. Elsewhere nothing here is collected.

What is compared with the eager path trains on tokens that differ: those of `make.encodings` are constant, so that queries have no
gradient but rounding, which Adam makes as large as any.
"""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

NUM_DEVICES = 4
collect_ignore_glob = [] if importlib.util.find_spec("torch_xla") else ["test_*.py"]
os.environ.setdefault("PJRT_DEVICE", "CPU")
os.environ.setdefault("CPU_NUM_DEVICES", str(NUM_DEVICES))
# Compiles faster; what is compiled is slower.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


def _neighbour(name):
    path = Path(__file__).parents[1] / "training" / "conftest.py"
    spec = importlib.util.spec_from_file_location("conftest_of_training", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


tiny = _neighbour("tiny")


@pytest.fixture(scope="session")
def meshes():
    """(whole weights, split weights). Made before anything else: torch's autograd learns of devices at its first backward pass."""
    import semantica.training.xla as xla

    xla._SPLIT_FROM = 64  # these networks are small
    return xla.XlaMesh(), xla.XlaMesh(split_weights=True)


@pytest.fixture(scope="session")
def mesh(meshes):
    return meshes[0]


@pytest.fixture(scope="session")
def trained(tiny, meshes):
    """trained(folder, config, xla=None, start=None, skipped=()): a run and what it reported and compiled; saves in folder/STEP."""
    from semantica.training.checkpoint import write_checkpoint
    from semantica.training.loop import Hooks, fit
    from semantica.training.xla import compile_stats

    def run(folder, config, xla=None, start=None, skipped=()):
        reports, graphs = [], []

        def saved(state):
            write_checkpoint(folder / str(state.step), state.snapshot())

        network = fit(
            config,
            Varied(tiny.loader(config), skipped, lambda: graphs.append(compile_stats().num_graphs)),
            tiny.provenance,
            Hooks(reports.append, saved),
            start=start,
            backend=xla,
        )
        return SimpleNamespace(folder=folder, network=network, reports=reports, graphs=[*graphs, compile_stats().num_graphs])

    return run


class Varied:
    """A real loader with tokens drawn here, one pixel that is not finite in `skipped` steps, and a look before every step."""

    def __init__(self, loader, skipped, look):
        self.loader, self.skipped, self.look = loader, skipped, look

    def batch(self, step):
        import torch

        from tests.signals import changed

        self.look()
        batch = self.loader.batch(step)
        generator = torch.Generator().manual_seed(step)
        x = batch.x.clone()
        if step in self.skipped:
            x[1, 2, 3, 4] = float("nan")
        return replace(batch, x=x, cond=changed(batch.cond, tokens=torch.randn(batch.cond.tokens.shape, generator=generator)))


@pytest.fixture(scope="session")
def recipe(tiny):
    """recipe(dropout, **changes): 12 steps with a warm-up, a cool-down, two reports and two checkpoints on the way, no prefetch."""
    from semantica.training.recipe import OptimizerConfig

    def make(dropout=0.0, **changes):
        stages = tuple(replace(stage, dropout=dropout) for stage in tiny.config().denoiser.stages)
        values = {
            "denoiser": replace(tiny.config().denoiser, stages=stages),
            "optimizer": OptimizerConfig(learning_rate=3e-3, warmup_steps=3, cooldown_steps=4),
            "num_steps": 12,
            "log_every": 4,
            "checkpoint_every": 5,
            "prefetch": 0,
        }
        return tiny.config(**(values | changes))

    return make
