"""Training and sampling on encodings without tokens: bit for bit what stored tokens give, through the shells and Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import SmallRun

from semantica.config import override
from semantica.data.dataset import read_manifest, read_shard
from semantica.distributed.encode import encode
from semantica.distributed.pairs import pairs
from semantica.distributed.sample import generate
from semantica.distributed.train import MODEL, train
from semantica.training.checkpoint import open_checkpoint
from semantica.training.start import open_inputs

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def lean(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run's episodes, encoded without tokens, and what is made of them."""
    out = tmp_path_factory.mktemp("lean")
    config, runtime = small_run.config, small_run.runtime
    lean_config = override(config.encode, {"store_tokens": False})
    encode(lean_config, episodes=small_run.out / "episodes", out=out / "encodings", runtime=runtime)
    pairs(config.band, encodings=out / "encodings", out=out / "selection", scores=None, runtime=runtime)
    train(config.train, open_inputs(config.train, out / "encodings", out / "selection"), out=out / "checkpoint", runtime=runtime)
    model = out / "checkpoint" / MODEL
    generate(config.generate, checkpoint=model, encodings=out / "encodings", out=out / "samples", runtime=runtime)
    return out


def test_no_tokens_are_stored(small_run: SmallRun, lean: Path) -> None:
    manifest = read_manifest(lean / "encodings", "encodings")
    for entry in [*manifest.shards(), *manifest.shards("held_out")]:
        assert read_shard(lean / "encodings", entry).column_names[-1] == "pooled"
    assert manifest.facts["encoder"] == read_manifest(small_run.out / "encodings", "encodings").facts["encoder"]


def test_trained_weights_are_identical_in_both_modes(small_run: SmallRun, lean: Path) -> None:
    stored, computed = (open_checkpoint(folder / "checkpoint" / MODEL) for folder in (small_run.out, lean))
    for ema in (False, True):
        expected = stored.network(ema=ema).state_dict()
        found = computed.network(ema=ema).state_dict()
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), name


def test_samples_are_identical_in_both_modes(small_run: SmallRun, lean: Path) -> None:
    def samples(folder: Path) -> dict[str, bytes]:
        rows = [row for entry in read_manifest(folder, "samples").shards() for row in read_shard(folder, entry).to_pylist()]
        return {row["sample_id"]: row["bytes"] for row in rows}

    expected = samples(small_run.out / "samples")
    assert expected == samples(lean / "samples")
    assert len(expected) == 12
