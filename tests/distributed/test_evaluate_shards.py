"""The actors of an evaluation, called without Ray: any order, number or retry of them leaves the same samples and features."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluation_case import SETTINGS, Trained, make_trained

from semantica.data.dataset import StageOutput
from semantica.distributed.measure import MeasureShard
from semantica.distributed.sample import DrawShard, shards_of
from semantica.evaluation.features import Features
from semantica.evaluation.measuring import Work, missing_work, sample_work, stored_work
from semantica.evaluation.models import open_models
from semantica.evaluation.networks import find_networks
from semantica.evaluation.protocols import cells_of
from semantica.evaluation.requests import requests_of
from semantica.evaluation.samples import SampleFolder
from semantica.evaluation.sets import open_set


@pytest.fixture(scope="module")
def trained(make: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return make_trained(make, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def case(trained: Trained) -> dict[str, Any]:
    (model,) = open_models({"m": str(trained.checkpoint)}, every_step=False)
    data = open_set("set", trained.encodings)
    cells = cells_of(SETTINGS, ["m"], ["m"], ["set"])
    requests = [r for cell in cells for r in requests_of(cell, model.hash, data, SETTINGS)]
    own = model.checkpoint.provenance.encoder
    return {"model": model, "data": data, "requests": requests, "networks": find_networks(SETTINGS, own["config"], own["identity"])}


def draw_stage(case: dict[str, Any], out: Path) -> StageOutput:
    return StageOutput(out, "drawn", {}, {"encodings": case["data"].hash})


def draw_in(case: dict[str, Any], out: Path, order: list[int] | None = None, num_actors: int = 1, stop: int | None = None) -> None:
    """Draw what is missing, batch by batch; `stop`: after so many, as when the job is killed."""
    stage = draw_stage(case, out)
    stage.open()
    drawn = {name for _, stats in stage.receipts() for name in stats["names"]}
    todo = shards_of(case["requests"], case["data"], SETTINGS.batch_size, drawn)
    arguments = (SETTINGS.draws(), case["model"].checkpoint.folder, case["data"].encodings, stage)
    actors = [DrawShard(*arguments) for _ in range(num_actors)]
    for place, index in enumerate(order or range(len(todo))):
        if place == stop:
            return
        actors[place % num_actors](todo[index])
    stage.finish({}, {})


def samples(out: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in out.glob("*.parquet"):
        for row in pq.read_table(path, columns=["sample_id", "bytes"]).to_pylist():
            assert row["sample_id"] not in found
            found[row["sample_id"]] = hashlib.sha256(row["bytes"]).hexdigest()
    return found


def test_samples_are_the_same_from_one_two_and_three_actors_and_after_a_stop(case: dict[str, Any], tmp_path: Path) -> None:
    draw_in(case, tmp_path / "one")
    whole = samples(tmp_path / "one")
    assert whole.keys() == {request.name for request in case["requests"]}
    assert len(set(whole.values())) == len(whole)
    num = len(shards_of(case["requests"], case["data"], SETTINGS.batch_size, ()))
    for actors in (2, 3):
        draw_in(case, tmp_path / f"{actors}", order=list(np.random.default_rng(actors).permutation(num)), num_actors=actors)
        assert samples(tmp_path / f"{actors}") == whole
    draw_in(case, tmp_path / "stopped", stop=num // 2)
    assert 0 < len(samples(tmp_path / "stopped")) < len(whole)
    assert not (tmp_path / "stopped" / "manifest.json").exists()
    draw_in(case, tmp_path / "stopped")
    assert samples(tmp_path / "stopped") == whole


def test_features_do_not_depend_on_who_measured_what_and_twice_is_once(case: dict[str, Any], tmp_path: Path) -> None:
    draw_in(case, tmp_path / "drawn")
    data, networks = case["data"], case["networks"]
    wanted, by = {request.name for request in case["requests"]}, ("encoder",)
    work = stored_work(data.encodings, data.pictures, by)
    work += sample_work(SampleFolder(tmp_path / "drawn"), data, case["requests"], by)
    assert sorted(name for one in work for name in one.names) == sorted([*wanted, *data.pictures])

    def measured(out: Path, order: list[Work], again: int = 0) -> Features:
        stage = StageOutput(out, "features", {"resolution_px": 16})
        stage.open()
        actor = MeasureShard(networks, 16, 4, stage)
        for one in [*order, *order[:again]]:
            actor(one)
        held = {column: set(stats["names"]) for _, stats in stage.receipts() for column in stats["columns"]}
        everything = {name for _, stats in stage.receipts() for name in stats["names"]}
        assert held.keys() == set(networks.columns.values())
        assert list(missing_work(work, networks.columns, dict.fromkeys(held, everything))) == []
        stage.finish({}, {})
        return Features.open(out, networks.columns)

    names = [*sorted(wanted), *data.pictures]
    first = measured(tmp_path / "first", work).matrix("encoder", names)
    assert first.shape == (len(names), 16)
    assert np.array_equal(measured(tmp_path / "second", work[::-1], again=3).matrix("encoder", names), first)


def test_the_encoder_may_be_measured_with_from_a_folder_of_another_name(case: dict[str, Any], tmp_path: Path) -> None:
    networks = case["networks"]
    moved = shutil.copytree(networks.encoder["weights"], tmp_path / "moved")
    again = replace(networks, encoder={**networks.encoder, "weights": str(moved)})
    extractor = MeasureShard(again, 16, 4, StageOutput(tmp_path / "features", "features", {})).network("encoder")
    assert extractor.identity.weights_sha256 == networks.encoder_identity["weights_sha256"]
