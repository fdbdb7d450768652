"""The data plane on an object store: the same bytes as on a disk, and training that reads from there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small import SmallRun

from semantica.data.dataset import read_manifest
from semantica.data.location import file_sha256, location
from semantica.distributed.encode import encode
from semantica.distributed.ingest import ingest
from semantica.distributed.pairs import pairs
from semantica.distributed.train import MODEL, train
from semantica.errors import DataError
from semantica.tracking import TrackingConfig
from semantica.training.start import open_inputs

pytestmark = pytest.mark.ray


def test_every_stage_of_the_data_plane_makes_the_same_dataset_on_s3(small_run: SmallRun, s3: str, tmp_path: Path) -> None:
    config, runtime = small_run.config, replace(small_run.runtime, tracking=TrackingConfig(uri="off"))
    root, out = location(f"{s3}/pictures"), location(f"{s3}/run")
    for path in small_run.root.rglob("*.png"):
        (root / str(path.relative_to(small_run.root))).write_bytes(path.read_bytes())

    facts = [("drawn pictures", "these tests", "CC0")]
    ingest(config.ingest, root=root, out=out / "episodes", runtime=runtime, pictures=facts)
    encode(config.encode, episodes=out / "episodes", out=out / "encodings", runtime=runtime)
    pairs(config.band, encodings=out / "encodings", out=out / "selection", scores=None, runtime=runtime)
    for folder in ("episodes", "encodings", "scores", "selection"):
        here, there = read_manifest(small_run.out / folder, folder), read_manifest(out / folder, folder)
        assert here == there, folder
        for entry in there.shards():
            assert file_sha256(out / folder / entry.path) == entry.sha256

    again = encode(config.encode, episodes=out / "episodes", out=out / "encodings", runtime=runtime)
    assert again == read_manifest(out / "encodings", "encodings")

    inputs = {"encodings": out / "encodings", "selection": out / "selection"}
    train(config.train, open_inputs(config.train, **inputs), out=tmp_path / "checkpoint", runtime=runtime)
    for name in ("model.safetensors", "ema.safetensors"):
        local = small_run.out / "checkpoint" / MODEL / name
        assert (tmp_path / "checkpoint" / MODEL / name).read_bytes() == local.read_bytes(), name


def test_an_output_that_is_being_written_on_s3_is_refused(small_run: SmallRun, s3: str) -> None:
    from semantica.data.lease import held

    out = location(f"{s3}/held/episodes")
    with held(out, "episodes"), pytest.raises(DataError, match="is being written by process"):
        ingest(small_run.config.ingest, root=small_run.root, out=out, runtime=small_run.runtime)


def test_a_bucket_that_is_not_there_is_one_sentence(small_run: SmallRun, s3: str) -> None:
    with pytest.raises(DataError, match="nobodys-bucket"):
        ingest(
            small_run.config.ingest, root=location("s3://nobodys-bucket/x"), out=location(f"{s3}/none"), runtime=small_run.runtime
        )
    with pytest.raises(DataError, match="cannot write to s3://nobodys-bucket/out"):
        ingest(small_run.config.ingest, root=small_run.root, out=location("s3://nobodys-bucket/out"), runtime=small_run.runtime)


def test_a_moved_run_keeps_its_selection(small_run: SmallRun, tmp_path: Path) -> None:
    from semantica.pairs.selection import read_selection

    shutil.copytree(small_run.out, tmp_path / "moved")
    assert read_selection(tmp_path / "moved" / "selection").scores == tmp_path / "moved" / "scores"
