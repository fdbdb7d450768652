"""Every shell on a real local Ray: what the stages leave behind, and what they do not do twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small import NUM_PAGES, NUM_PICTURES, SmallRun, run_stages

from semantica.conditioning.signals import Signal
from semantica.conditioning.values import SignalValues
from semantica.config import override, to_dict
from semantica.data.dataset import MANIFEST, StageOutput, read_manifest, read_shard
from semantica.distributed.encode import encode
from semantica.distributed.ingest import ingest
from semantica.distributed.pairs import pairs
from semantica.distributed.sample import generate
from semantica.distributed.train import MODEL, train
from semantica.errors import ConfigError, DataError, WeightsError
from semantica.evaluation.models import check_same_encoder
from semantica.pairs.loader import SOURCES, Pair, open_pairs
from semantica.pairs.selection import EmptyBandError
from semantica.training.checkpoint import Provenance, open_checkpoint, write_checkpoint
from semantica.training.feed import training_loader
from semantica.training.loop import Hooks, fit
from semantica.training.start import open_inputs

pytestmark = pytest.mark.ray


def test_every_picture_is_accepted_or_quarantined(small_run: SmallRun) -> None:
    counts = read_manifest(small_run.out / "episodes", "episodes").counts
    assert counts["num_images_in"] == NUM_PAGES * NUM_PICTURES
    assert counts["num_train_images"] + counts["num_held_out_images"] + counts["num_quarantined"] == counts["num_images_in"]


def test_encodings_hold_every_episode_row_for_row(small_run: SmallRun) -> None:
    episodes, encodings = (read_manifest(small_run.out / kind, kind) for kind in ("episodes", "encodings"))
    for before, after in zip(episodes.shards(), encodings.shards(), strict=True):
        left, right = read_shard(small_run.out / "episodes", before), read_shard(small_run.out / "encodings", after)
        assert left.equals(right.select(left.column_names))
        assert [len(x) for x in left["images"]] == [len(x) for x in right["pooled"]]


def test_ray_train_with_two_workers_equals_the_plain_loop(small_run: SmallRun) -> None:
    """DDP over two workers computes what one process computes on the whole batch: same draws, same noise, averaged gradients."""
    config = small_run.config.train
    loader = training_loader(config, open_pairs(small_run.out / "encodings", small_run.out / "selection"))
    hooks = Hooks(on_report=lambda report: None, on_checkpoint=lambda state: None)
    alone = dict(fit(config, loader, Provenance({}, "", ""), hooks).named_parameters())
    trained = dict(open_checkpoint(small_run.out / "checkpoint" / MODEL).network(ema=False).named_parameters())
    for name, value in trained.items():
        torch.testing.assert_close(value, alone[name], rtol=0, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_samples_do_not_depend_on_how_they_are_batched(small_run: SmallRun, tmp_path: Path) -> None:
    config = override(small_run.config.generate, {"batch_size": 4})
    model = small_run.out / "checkpoint" / MODEL
    generate(config, checkpoint=model, encodings=small_run.out / "encodings", out=tmp_path / "samples", runtime=small_run.runtime)
    first, second = (_samples(folder) for folder in (small_run.out / "samples", tmp_path / "samples"))
    assert first.keys() == second.keys()
    for name, pixels in first.items():
        # Sums inside a convolution may be ordered by the batch size: at most one level of 255.
        assert np.abs(pixels.astype(int) - second[name].astype(int)).max() <= 1


@pytest.mark.slow
def test_a_model_that_takes_several_images_and_a_similarity_is_trained_and_asked(small_run: SmallRun, tmp_path: Path) -> None:
    """bf16 and activation checkpointing go through the same door; a model that takes no similarity refuses one."""
    encodings, model = small_run.out / "encodings", tmp_path / "checkpoint" / MODEL
    changes = {"denoiser.max_images": 3, "denoiser.similarity": True, "compute.precision": "bfloat16", "compute.recompute": "all"}
    config = override(small_run.config.train, {**changes, "num_steps": 4, "log_every": 1, "optimizer.warmup_steps": 1})
    train(config, open_inputs(config, encodings, small_run.out / "selection"), out=model.parent, runtime=small_run.runtime)
    opened = open_checkpoint(model)
    assert (opened.config.denoiser.max_images, opened.config.compute.precision) == (3, "bfloat16")
    assert {p.dtype for p in opened.network().parameters()} == {torch.float32}
    losses = [entry["loss"] for entry in json.loads((model.parent / "history.json").read_text())]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    drawn = {}
    for asked in (None, 0.5):
        wanted = override(small_run.config.generate, {"similarity": asked, "guidance": [0.0]})
        out = tmp_path / f"samples-{asked}"
        generate(wanted, checkpoint=model, encodings=encodings, out=out, runtime=small_run.runtime)
        drawn[asked] = _samples(out)
    assert drawn[None].keys() == drawn[0.5].keys()
    plain = small_run.out / "checkpoint" / MODEL
    with pytest.raises(ConfigError, match=r"generate\.similarity: the checkpoint's denoiser takes none"):
        generate(wanted, checkpoint=plain, encodings=encodings, out=tmp_path / "refused", runtime=small_run.runtime)


@SOURCES.register("bright_of_stages")
def _brightness(signal: Signal, pairs: Sequence[Pair], x: torch.Tensor) -> SignalValues:
    return SignalValues.of(signal, x.mean((1, 2, 3))[:, None])


def test_a_model_that_is_told_a_signal_draws_with_given_values_and_with_those_of_a_column(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signal, runtime = Signal(name="bright_of_stages", enters="film", dim=1), small_run.runtime
    changes = {"denoiser.signals": [to_dict(signal)], "num_steps": 6, "optimizer.warmup_steps": 1, "optimizer.learning_rate": 0.01}
    config = override(small_run.config.train, changes)
    loader = training_loader(config, open_pairs(small_run.out / "encodings", small_run.out / "selection"))
    hooks = Hooks(lambda report: None, lambda state: write_checkpoint(tmp_path / f"{state.step}", state.snapshot()))
    fit(config, loader, open_checkpoint(small_run.out / "checkpoint" / MODEL).provenance, hooks)

    source = read_manifest(small_run.out / "encodings", "encodings")
    told = StageOutput(tmp_path / "encodings", "encodings", dict(source.config), dict(source.inputs))
    assert told.open() is None
    for number, entry in enumerate(source.shards("held_out")):
        table = pq.read_table(small_run.out / "encodings" / entry.path)
        values = pa.array([[[0.5]] * len(page) for page in table["images"].to_pylist()], pa.list_(pa.list_(pa.float32())))
        told.write_shard(f"part-{number:05d}", {"held_out": table.append_column(signal.name, values)}, {})
    told.finish(source.counts, source.facts)

    wanted = override(small_run.config.generate, {"guidance": [0.5], "num_conditions": 2, "use_ema": False})
    given = override(wanted, {"signals": [f"{signal.name}=0.5"]})
    drawn, manifests, plain = {}, {}, small_run.out / "encodings"
    for name, settings, encodings in (("null", wanted, plain), ("given", given, plain), ("column", wanted, tmp_path / "encodings")):
        out = tmp_path / name
        manifests[name] = generate(settings, checkpoint=tmp_path / "6", encodings=encodings, out=out, runtime=runtime)
        drawn[name] = {sample: pixels.tobytes() for sample, pixels in _samples(out).items()}
    said = [line for line in capsys.readouterr().err.splitlines() if "signals:" in line]
    for line, name in zip(said, drawn, strict=True):
        assert line.endswith(f"{signal.name} {manifests[name].facts['signals'][signal.name]}")
    assert drawn["given"] == drawn["column"] != drawn["null"]
    assert [manifests[name].inputs.get("columns") for name in drawn] == [None, None, signal.name]
    with pytest.raises(DataError, match=r"signals.*bright_of_stages=0\.5"):
        generate(wanted, checkpoint=tmp_path / "6", encodings=plain, out=tmp_path / "given", runtime=runtime)


def _samples(folder: Path) -> dict[str, np.ndarray]:
    from semantica.encoders.encode import decode_picture

    manifest = read_manifest(folder, "samples")
    rows = [row for entry in manifest.shards() for row in read_shard(folder, entry).to_pylist()]
    return {row["sample_id"]: decode_picture(row["bytes"]).numpy() for row in rows}


def test_the_report_holds_the_named_figures_and_asks_nothing_of_other_hosts(small_run: SmallRun) -> None:
    figures = json.loads((small_run.out / "evaluation" / "report.json").read_text())
    for name in (
        "fd_samples", "fd_noise", "fd_copy", "fd_train", "own_similarity", "other_similarity", "similarity_standard_error",
        "num_episodes", "num_pairs_kept",
    ):  # fmt: skip
        assert isinstance(figures[name], (int, float)), name
    page = (small_run.out / "evaluation" / "report.html").read_text()
    assert "drawn pictures" in page
    assert "CC0" in page
    assert 'src="http' not in page


def test_all_stages_are_runs_of_one_mlflow_experiment(small_run: SmallRun) -> None:
    mlflow.set_tracking_uri(small_run.uri)
    runs = mlflow.search_runs(experiment_names=["semantica"], order_by=["start_time ASC"])  # other tests add later ones
    assert {"ingest", "encode", "score", "pairs", "train", "generate", "evaluate"} <= set(runs["tags.semantica.stage"])
    train_run = runs[runs["tags.semantica.stage"] == "train"].iloc[0]
    assert train_run["status"] == "FINISHED"
    client = mlflow.MlflowClient(small_run.uri)
    assert [m.step for m in client.get_metric_history(train_run["run_id"], "loss")] == [2, 4, 6]
    evaluation = runs[runs["tags.semantica.stage"] == "evaluate"].iloc[0]
    artifacts = {a.path for a in client.list_artifacts(evaluation["run_id"])}
    assert {"report.html", "report.json", "images"} <= artifacts


def test_running_everything_again_changes_no_file(small_run: SmallRun) -> None:
    before = {p: p.stat().st_mtime_ns for p in small_run.out.rglob("*.parquet")} | _manifests(small_run.out)
    run_stages(small_run.config, small_run.root, small_run.out, small_run.runtime)
    assert before == {p: p.stat().st_mtime_ns for p in small_run.out.rglob("*.parquet")} | _manifests(small_run.out)


def _manifests(out: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in out.rglob(MANIFEST)}


def test_an_interrupted_encode_makes_only_what_is_missing(small_run: SmallRun, tmp_path: Path) -> None:
    out = tmp_path / "encodings"
    shutil.copytree(small_run.out / "encodings", out)
    whole = read_manifest(out, "encodings")
    (out / MANIFEST).unlink()
    next((out / "_shards").glob("part-00001.*")).unlink()
    (out / "part-00001.parquet").write_bytes(b"half written")
    kept = (out / "part-00000.parquet").stat().st_mtime_ns
    with pytest.raises(DataError, match=r"no manifest\.json"):
        pairs(small_run.config.band, encodings=out, out=tmp_path / "s", scores=None, runtime=small_run.runtime)
    again = encode(small_run.config.encode, episodes=small_run.out / "episodes", out=out, runtime=small_run.runtime)
    assert again.hash == whole.hash
    assert (out / "part-00000.parquet").stat().st_mtime_ns == kept


def test_changing_the_band_reads_scores_alone(small_run: SmallRun, tmp_path: Path) -> None:
    scores = small_run.out / "scores"
    before = {p: p.stat().st_mtime_ns for p in scores.rglob("*")}
    narrow = override(small_run.config.band, {"low": 0.0, "high": 0.99})
    manifest = pairs(
        narrow, encodings=small_run.out / "encodings", out=tmp_path / "narrow", scores=scores, runtime=small_run.runtime
    )
    assert before == {p: p.stat().st_mtime_ns for p in scores.rglob("*")}
    assert not list((tmp_path / "narrow").rglob("*.parquet"))
    assert 0 < manifest.counts["num_pairs_kept"] < read_manifest(small_run.out / "selection", "selection").counts["num_pairs_kept"]


def test_an_output_stays_when_the_work_that_is_to_replace_it_cannot_begin(small_run: SmallRun, tmp_path: Path) -> None:
    for name in ("encodings", "scores", "selection"):
        shutil.copytree(small_run.out / name, tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    fresh = override(small_run.runtime, {"fresh": True})
    absent = override(small_run.config.encode, {"encoder.weights": str(tmp_path / "none")})
    with pytest.raises(WeightsError, match="none"):
        encode(absent, episodes=small_run.out / "episodes", out=tmp_path / "encodings", runtime=fresh)
    empty = override(small_run.config.band, {"low": 0.99999, "high": 1.0})
    with pytest.raises(EmptyBandError, match="widen the band"):
        pairs(empty, encodings=tmp_path / "encodings", out=tmp_path / "selection", scores=tmp_path / "scores", runtime=fresh)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    wide = override(small_run.config.band, {"low": 0.0})
    pairs(wide, encodings=tmp_path / "encodings", out=tmp_path / "selection", scores=tmp_path / "scores", runtime=fresh)
    assert read_manifest(tmp_path / "selection", "selection").config["low"] == 0.0


def test_kept_and_refused_pairs_are_pictures_in_mlflow_and_beside_the_selection(small_run: SmallRun, tmp_path: Path) -> None:
    band = override(small_run.config.band, {"low": 0.0, "high": 0.9})
    runtime, out = small_run.runtime, tmp_path / "selection"
    pairs(band, encodings=small_run.out / "encodings", out=out, scores=small_run.out / "scores", runtime=runtime)
    expected = {"scores.png", "pairs-kept.png", "pairs-too-far.png", "pairs-too-near.png"}
    shown = {path.name: path for path in (out / "examples").iterdir()}
    assert set(shown) == expected
    for path in shown.values():
        with Image.open(path) as image:
            assert min(image.size) > 64
            assert len(image.convert("RGB").getcolors(2**24)) > 10
    mlflow.set_tracking_uri(small_run.uri)
    runs = mlflow.search_runs(experiment_names=["semantica"], order_by=["start_time DESC"])
    run = runs[runs["tags.semantica.stage"] == "pairs"].iloc[0]["run_id"]
    assert expected <= {Path(a.path).name for a in mlflow.MlflowClient(small_run.uri).list_artifacts(run, "images")}


def test_a_damaged_shard_of_encodings_is_left_out_and_said_and_too_many_are_refused(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encodings = tmp_path / "encodings"
    shutil.copytree(small_run.out / "encodings", encodings)
    entries = read_manifest(encodings, "encodings").shards()
    path = encodings / entries[0].path
    path.write_bytes(path.read_bytes()[:-100])
    strict = replace(small_run.runtime, max_damaged_share=0.01)
    with pytest.raises(DataError, match=rf"{entries[0].num_rows} of \d+ episodes .* max_damaged_share = 0.01 allows"):
        pairs(small_run.config.band, encodings=encodings, out=tmp_path / "a" / "selection", scores=None, runtime=strict)
    lenient = replace(small_run.runtime, max_damaged_share=0.9)
    manifest = pairs(small_run.config.band, encodings=encodings, out=tmp_path / "b" / "selection", scores=None, runtime=lenient)
    whole = read_manifest(small_run.out / "selection", "selection").counts["num_episodes"]
    assert manifest.counts["num_episodes_kept"] == whole - entries[0].num_rows
    assert "1 damaged shards of the encodings" in "".join(capsys.readouterr())


def test_a_users_error_in_a_worker_comes_back_as_one_sentence(small_run: SmallRun, tmp_path: Path) -> None:
    config = override(small_run.config.encode, {"encoder.weights": str(tmp_path / "nothing")})
    with pytest.raises(WeightsError, match="nothing"):
        encode(config, episodes=small_run.out / "episodes", out=tmp_path / "encodings", runtime=small_run.runtime)
    assert not (tmp_path / "encodings" / MANIFEST).exists()


def test_a_denoiser_for_another_encoder_is_refused_before_training(small_run: SmallRun, tmp_path: Path) -> None:
    config = override(small_run.config.train, {"denoiser.token_dim": 64})
    inputs = {"encodings": small_run.out / "encodings", "selection": small_run.out / "selection"}
    with pytest.raises(ConfigError, match="token_dim is 64"):
        train(config, open_inputs(config, **inputs), out=tmp_path / "checkpoint", runtime=small_run.runtime)


def test_workers_that_do_not_divide_the_lanes_are_refused(small_run: SmallRun, tmp_path: Path) -> None:
    runtime = override(small_run.runtime, {"cluster.num_workers": 3})
    inputs = {"encodings": small_run.out / "encodings", "selection": small_run.out / "selection"}
    with pytest.raises(ConfigError, match="num_workers must divide"):
        train(small_run.config.train, open_inputs(small_run.config.train, **inputs), out=tmp_path / "checkpoint", runtime=runtime)


def test_encodings_of_another_encoder_are_refused(small_run: SmallRun) -> None:
    trained_with = dict(open_checkpoint(small_run.out / "checkpoint" / MODEL).provenance.encoder["identity"])
    encodings = read_manifest(small_run.out / "encodings", "encodings")
    check_same_encoder(trained_with, encodings)
    with pytest.raises(DataError, match="weights_sha256"):
        check_same_encoder({**trained_with, "weights_sha256": "0" * 64}, encodings)


def test_a_tree_where_nothing_can_be_trained_on_says_why(local_ray: None, small_run: SmallRun, tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / "page"
    folder.mkdir(parents=True)
    (folder / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match="none of 1 pictures"):
        ingest(small_run.config.ingest, root=tmp_path / "pictures", out=tmp_path / "out", runtime=small_run.runtime)
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_pictures_of_ones_own_become_conditions_without_training(small_run: SmallRun, tmp_path: Path) -> None:
    """What a user with a folder of pictures does: hold everything out, encode, draw."""
    runtime = small_run.runtime
    own = override(small_run.config.ingest, {"held_out_share": 1.0})
    counts = ingest(own, root=small_run.root, out=tmp_path / "episodes", runtime=runtime).counts
    assert counts["num_train_images"] == 0
    assert counts["num_held_out_images"] == counts["num_images_in"] - counts["num_quarantined"] > 0
    encode(small_run.config.encode, episodes=tmp_path / "episodes", out=tmp_path / "encodings", runtime=runtime)
    model = small_run.out / "checkpoint" / MODEL
    drawn = generate(
        small_run.config.generate, checkpoint=model, encodings=tmp_path / "encodings", out=tmp_path / "samples", runtime=runtime
    )
    assert drawn.counts == {"num_conditions": 6, "num_samples": 12}
    assert (tmp_path / "samples" / "preview.png").read_bytes().startswith(b"\x89PNG")
