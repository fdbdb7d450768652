"""What lies at a path: every kind of evaluation data is told apart, and what is none is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from semantica.errors import ConfigError, DataError
from semantica.evaluation.models import named, open_models
from semantica.evaluation.sets import DataKind, ingest_settings, look


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), "red").save(path)


def test_each_kind_of_data_is_told_apart(tmp_path: Path) -> None:
    picture(tmp_path / "flat" / "a.png")
    picture(tmp_path / "classes" / "cat" / "a.png")
    (tmp_path / "classes" / "dog").mkdir()
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "table" / "a.parquet")
    (tmp_path / "encodings").mkdir()
    (tmp_path / "encodings" / "manifest.json").write_text(json.dumps({"kind": "encodings"}))
    assert look("d", tmp_path / "flat") == look("d", tmp_path / "table") == DataKind("pictures")
    assert look("d", tmp_path / "table" / "a.parquet") == DataKind("pictures")
    assert look("d", tmp_path / "classes") == DataKind("imagefolder", labels=("cat", "dog"))
    assert look("d", tmp_path / "encodings") == DataKind(None, "encodings")


def test_what_is_no_set_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data d: no folder or file .*nothing; give pictures"):
        look("d", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"--data d: no pictures in .*empty, found nothing"):
        look("d", tmp_path / "empty")
    picture(tmp_path / "mixed" / "a.png")
    picture(tmp_path / "mixed" / "cat" / "a.png")
    with pytest.raises(DataError, match="holds pictures and folders, so it is neither"):
        look("d", tmp_path / "mixed")
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "manifest.json").write_text(json.dumps({"kind": "scores"}))
    with pytest.raises(DataError, match="holds scores, expected pictures, episodes or encodings"):
        look("d", tmp_path / "scores")


def test_an_evaluation_set_is_held_out_whole_and_leaves_no_good_picture_out() -> None:
    settings = ingest_settings("pictures", 64)
    assert (settings.held_out_share, settings.min_images, settings.drop_near_duplicates, settings.census_mb) == (1, 1, False, 0)
    assert (settings.image.image_px, settings.image.min_side_px) == (64, 1)


def test_names_of_checkpoints_and_data_are_given_or_taken_from_the_path() -> None:
    assert named(["runs/x/checkpoint/model", "b=runs/y"], "checkpoint") == {"x": "runs/x/checkpoint/model", "b": "runs/y"}
    assert named(["s3://bucket/set.parquet", "/a=b/c"], "data") == {"set": "s3://bucket/set.parquet", "c": "/a=b/c"}
    with pytest.raises(ConfigError, match="--data: two are called 'x'; name them: --data one=a/x other=b/x"):
        named(["a/x", "b/x"], "data")
    for text in ("x=", "..=y", "a b=c", "/", ""):
        with pytest.raises(ConfigError, match="--data: expected NAME=PATH or PATH, the name of letters, digits"):
            named([text], "data")
    with pytest.raises(ConfigError, match="--checkpoint: expected one or several paths"):
        named([], "checkpoint")


def test_a_folder_that_holds_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be a checkpoint, the output of .* or a folder with one"):
        open_models({"m": str(tmp_path)}, every_step=False)
