"""The shell of training on a real local Ray: what reaches MLflow, and what happens when steps are not finite."""

from __future__ import annotations

import io
import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from small import SmallRun

from semantica.config import override
from semantica.data.dataset import MANIFEST
from semantica.distributed.train import MODEL, train
from semantica.errors import ConfigError, DataError
from semantica.pairs.loader import open_pairs
from semantica.training.checkpoint import Provenance, open_checkpoint
from semantica.training.feed import training_loader
from semantica.training.loop import Hooks, fit
from semantica.training.start import open_inputs
from semantica.training.watch import NonFiniteError

pytestmark = pytest.mark.ray


def trained(small_run: SmallRun, out: Path, **changes: object) -> dict[str, Path]:
    inputs = {"encodings": small_run.out / "encodings", "selection": small_run.out / "selection"}
    config = override(small_run.config.train, changes)
    train(
        config,
        open_inputs(config, **inputs),
        out=out / "checkpoint",
        runtime=override(small_run.runtime, {"tracking.uri": f"sqlite:///{out}/mlflow.db"}),
    )
    return inputs


@pytest.fixture(scope="module")
def out(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with two workers, micro-batches and samples."""
    folder = tmp_path_factory.mktemp("training")
    trained(small_run, folder, sample_every=4, num_samples=3, micro_batch_size=2, peak_tflops=0.01)
    return folder


def test_levels_samples_and_speed_reach_mlflow(out: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{out}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("semantica").experiment_id])
    figures = run.data.metrics
    levels = {name for name in figures if name.startswith("loss_logsnr_")}
    assert len(levels) >= 5
    assert {f"v_{name}" for name in levels} == {name for name in figures if name.startswith("v_loss_logsnr_")}
    assert {"mfu", "memory_bytes", "images_per_second", "data_wait_share", "grad_norm", "num_skipped"} <= set(figures)
    assert figures["num_skipped"] == 0
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [2, 4, 6]
    history = json.loads((out / "checkpoint" / "history.json").read_text())
    assert [h["step"] for h in history] == [2, 4, 6]
    assert not any("_logsnr_" in name for name in history[0])
    found = {a.path for a in client.list_artifacts(run.info.run_id)} | {
        a.path for a in client.list_artifacts(run.info.run_id, "images")
    }
    assert {"loss_by_logsnr.svg", "images/samples-0000004.png", "images/samples-0000006.png"} <= found
    sheets = [
        np.asarray(Image.open(io.BytesIO(Path(client.download_artifacts(run.info.run_id, name)).read_bytes())).convert("RGB"))
        for name in ("images/samples-0000004.png", "images/samples-0000006.png")
    ]
    first = sheets[0][:, :96]  # the column of conditions, enlarged to 96 px
    assert np.array_equal(first, sheets[1][:, :96])
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 2
    assert not np.array_equal(sheets[0], sheets[1])  # the weights went on


def test_micro_batches_of_two_workers_train_what_as_many_of_one_do(small_run: SmallRun, out: Path) -> None:
    config = override(small_run.config.train, {"micro_batch_size": 2})
    loader = training_loader(config, open_pairs(small_run.out / "encodings", small_run.out / "selection"))
    hooks = Hooks(on_report=lambda report: None, on_checkpoint=lambda state: None)
    alone = dict(fit(config, loader, Provenance({}, "", ""), hooks).named_parameters())
    for name, value in open_checkpoint(out / "checkpoint" / MODEL).network(ema=False).named_parameters():
        torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_sharded_workers_train_what_workers_with_all_of_it_do_and_write_their_rows(
    small_run: SmallRun, out: Path, tmp_path: Path
) -> None:
    changes = {"sample_every": 4, "num_samples": 3, "micro_batch_size": 2, "peak_tflops": 0.01}
    inputs = trained(small_run, tmp_path, **changes, **{"compute.parallel": "fsdp"})
    written = {p.name for p in (tmp_path / "checkpoint" / MODEL).glob("*.safetensors")}
    assert written == {f"{kind}-0000{rank}-of-00002.safetensors" for kind in ("model", "ema", "optimizer") for rank in (1, 2)}
    sharded, whole = (open_checkpoint(folder / "checkpoint" / MODEL) for folder in (tmp_path, out))
    expected = dict(whole.network(ema=False).named_parameters())
    for name, value in sharded.network(ema=False).named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("semantica").experiment_id])
    kept = {Path(a.path).name for a in client.list_artifacts(run.info.run_id, MODEL)}
    assert kept == {"config.json", "ema-00001-of-00002.safetensors", "ema-00002-of-00002.safetensors"}
    images = {a.path for a in client.list_artifacts(run.info.run_id, "images")}
    assert {"images/samples-0000004.png", "images/samples-0000006.png"} <= images
    # What is done is done, however the workers share the state.
    before = (tmp_path / "checkpoint" / MANIFEST).stat().st_mtime_ns
    config = override(small_run.config.train, changes)
    train(config, open_inputs(config, **inputs), out=tmp_path / "checkpoint", runtime=small_run.runtime)
    assert (tmp_path / "checkpoint" / MANIFEST).stat().st_mtime_ns == before


def test_workers_that_cannot_share_copies_are_refused_before_training(small_run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^train.compute.shard_workers must divide cluster.num_workers = 2, got 3; ") as caught:
        trained(small_run, tmp_path, **{"compute.parallel": "hsdp", "compute.shard_workers": 3})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoint").exists()


def test_weights_that_explode_go_back_to_the_last_checkpoint_once_and_then_stop_with_one_sentence(
    small_run: SmallRun, tmp_path: Path
) -> None:
    changes = {
        "optimizer.learning_rate": 1e30,
        "optimizer.warmup_steps": 0,
        "optimizer.cooldown_steps": 0,
        "num_steps": 20,
        "max_skipped": 3,
        "checkpoint_every": 1,
    }
    with pytest.raises(NonFiniteError) as caught:
        trained(small_run, tmp_path, **changes)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("train: loss or gradients were not finite in 3 steps in a row up to step 6 (train.max_skipped is 3)")
    assert message.endswith("it came again after going back to step 3, so it is no fault of a machine")
    assert not (tmp_path / "checkpoint" / MANIFEST).exists()


def test_samples_without_held_out_pictures_are_refused_before_training(small_run: SmallRun, tmp_path: Path) -> None:
    from semantica.distributed.encode import encode
    from semantica.distributed.ingest import ingest
    from semantica.distributed.pairs import pairs

    config, runtime = small_run.config, small_run.runtime
    ingest(override(config.ingest, {"held_out_share": 0.0}), root=small_run.root, out=tmp_path / "episodes", runtime=runtime)
    encode(config.encode, episodes=tmp_path / "episodes", out=tmp_path / "encodings", runtime=runtime)
    pairs(config.band, encodings=tmp_path / "encodings", out=tmp_path / "selection", scores=None, runtime=runtime)
    sampling = override(config.train, {"sample_every": 2})
    inputs = open_inputs(sampling, tmp_path / "encodings", tmp_path / "selection")
    with pytest.raises(ConfigError, match=r"^train.sample_every: the encodings hold no held-out pictures"):
        train(sampling, inputs, out=tmp_path / "checkpoint", runtime=runtime)


def test_a_training_that_is_made_longer_is_one_that_was_long_from_the_start(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finished after 4 steps, then run again for 6; the old model stays until the new steps can begin."""
    inputs = {"encodings": small_run.out / "encodings", "selection": small_run.out / "selection"}
    config = override(small_run.config.train, {"num_steps": 6, "optimizer.cooldown_steps": 0})
    short, out = override(config, {"num_steps": 4}), tmp_path / "checkpoint"
    train(config, open_inputs(config, **inputs), out=tmp_path / "whole", runtime=small_run.runtime)
    first = train(short, open_inputs(short, **inputs), out=out, runtime=small_run.runtime)
    assert not (out / "checkpoints").exists()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    crowded = override(small_run.runtime, {"cluster.cpus_per_worker": 1000.0, "fresh": True})
    for changes in ({}, {"seed": 1}):  # longer, and another training that is to replace it: neither can begin
        with pytest.raises(ConfigError, match="CPUs are asked for"):
            train(override(config, changes), open_inputs(override(config, changes), **inputs), out=out, runtime=crowded)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and "checkpoints" not in path.parts} == before
    assert train(short, open_inputs(short, **inputs), out=out, runtime=small_run.runtime) == first
    longer = train(
        override(config, {"log_every": 1}),
        open_inputs(override(config, {"log_every": 1}), **inputs),
        out=out,
        runtime=small_run.runtime,
    )
    assert longer.counts == {"num_steps": 6}
    for kind in ("model", "ema", "optimizer"):
        name = f"{MODEL}/{kind}.safetensors"
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [h["step"] for h in json.loads((out / "history.json").read_text())] == [2, 4, 5, 6]
    assert "cool-down" not in capsys.readouterr().err
    with pytest.raises(DataError, match=r"num_steps: 6 are done, now 5\); ask for more num_steps, choose another --out"):
        train(
            override(config, {"num_steps": 5}),
            open_inputs(override(config, {"num_steps": 5}), **inputs),
            out=out,
            runtime=small_run.runtime,
        )


def test_training_starts_from_the_weights_of_an_output_and_is_another_output_with_others(
    small_run: SmallRun, tmp_path: Path
) -> None:
    inputs = {"encodings": small_run.out / "encodings", "selection": small_run.out / "selection"}
    source = open_checkpoint(small_run.out / "checkpoint" / MODEL)
    changes = {"init_from": str(small_run.out / "checkpoint"), "num_steps": 1, "optimizer.learning_rate": 1e-30}
    config = override(small_run.config.train, changes)
    manifest = train(config, open_inputs(config, **inputs), out=tmp_path / "out", runtime=small_run.runtime)
    assert manifest.inputs["init_ema"] == source.hash
    expected = dict(source.network().named_parameters())
    for name, value in open_checkpoint(tmp_path / "out" / MODEL).network(ema=False).named_parameters():
        assert torch.equal(value, expected[name]), name
    raw = override(config, {"init_weights": "raw"})
    with pytest.raises(DataError, match=r"inputs\.init_raw: was null, now .*inputs\.init_ema: was "):
        train(raw, open_inputs(raw, **inputs), out=tmp_path / "out", runtime=small_run.runtime)
    other = override(config, {"denoiser.mlp_ratio": 2})
    with pytest.raises(ConfigError, match=r"^init_from must hold .* \(settings that differ: mlp_ratio: was 4, now 2\)"):
        train(other, open_inputs(other, **inputs), out=tmp_path / "other", runtime=small_run.runtime)
