"""The stage `apply`: files and tables, refused pictures, work that goes on, and the report. The model is small."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from semantica.applications.folder import Folders
from semantica.applications.settings import ApplyConfig
from semantica.data.dataset import Manifest, read_manifest, read_shard
from semantica.distributed.apply import ApplyShard, apply_to_folder
from semantica.distributed.runtime import ClusterConfig, Runtime
from semantica.errors import ConfigError, DataError
from semantica.tracking import TrackingConfig
from tests.generation.conftest import runs

__all__ = ["runs"]
CONFIG = ApplyConfig(num_steps=4, samples_per_picture=2)
RUNTIME = Runtime(tracking=TrackingConfig(uri="off"), cluster=ClusterConfig(num_actors=1, num_cpus=2))


@pytest.fixture
def photos(make: SimpleNamespace, tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(5):
        (tmp_path / "photos" / f"p{number}.png").write_bytes(make.picture(number + 1, 40))
    return tmp_path / "photos"


def work(runs: SimpleNamespace, photos: Path, config: ApplyConfig = CONFIG, **changes: object) -> Manifest:
    """The manifest of an edit of the photos into out/, beside them."""
    given = {"task": "edit", "folders": Folders(photos), "out": photos.parent / "out", **changes}
    plain = runs.plain
    return apply_to_folder(config=config, checkpoint=plain.checkpoint, encoder=str(plain.encoder), runtime=RUNTIME, **given)  # type: ignore[arg-type]


def test_each_picture_has_its_samples_as_png_and_a_place_in_the_report(runs: SimpleNamespace, photos: Path) -> None:
    (photos / "p2.png").write_text("no picture")
    manifest = work(runs, photos)
    out = photos.parent / "out"
    assert manifest.counts == {"num_pictures": 4, "num_refused": 1, "num_samples": 8}
    names = {f"pictures/p{number}-{index}.png" for number in (0, 1, 3, 4) for index in range(2)}
    assert {entry.path for entry in manifest.files if entry.path.startswith("pictures/")} == names
    assert all(Image.open(out / name).size == (16, 16) for name in names)
    (refused,) = read_shard(out, manifest.shards("refused")[0]).to_pylist()
    assert refused["picture"] == "p2"
    assert "p2.png" in refused["reason"]
    page = (out / "report.html").read_text()
    assert "Refused pictures" in page
    assert page.count("<img") >= 12
    assert Image.open(out / "preview.png").width > 3 * 96


def test_an_inversion_leaves_the_latents(runs: SimpleNamespace, photos: Path) -> None:
    manifest = work(runs, photos, task="invert")
    rows = read_shard(photos.parent / "out", manifest.shards("latents")[0]).to_pylist()
    assert [row["picture"] for row in rows] == [f"p{number}" for number in range(5)]
    z = np.frombuffer(rows[0]["z"], "<f4").reshape(rows[0]["shape"])
    assert z.shape == (3, 16, 16)
    assert 0.3 < z.std() < 3


def test_the_same_work_is_not_done_again_and_other_work_is_refused(
    runs: SimpleNamespace, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = work(runs, photos)
    monkeypatch.setattr(ApplyShard, "__call__", lambda self, shard: pytest.fail("it is done already"))
    assert work(runs, photos).hash == first.hash
    with pytest.raises(DataError, match="strength"):
        work(runs, photos, ApplyConfig(num_steps=4, samples_per_picture=2, strength=0.7))
    with pytest.raises(DataError, match="task"):
        work(runs, photos, task="vary")
    shutil.copy(photos / "p0.png", photos / "p9.png")
    with pytest.raises(DataError, match="pictures"):
        work(runs, photos)


def test_a_folder_without_one_usable_picture_and_a_folder_without_a_model_are_errors(runs: SimpleNamespace, photos: Path) -> None:
    for path in photos.iterdir():
        path.write_text("no picture")
    with pytest.raises(DataError, match="none of the 5 pictures can be used"):
        work(runs, photos)
    with pytest.raises(DataError, match="holds no model"):
        apply_to_folder("vary", CONFIG, checkpoint=photos, folders=Folders(photos), out=photos.parent / "b", runtime=RUNTIME)
    with pytest.raises(ConfigError, match="masks: inpaint needs"):
        work(runs, photos, task="inpaint")


@pytest.mark.ray
def test_shards_that_a_killed_run_left_are_kept_and_the_rest_is_the_same(runs: SimpleNamespace, photos: Path) -> None:
    config = ApplyConfig(num_steps=4, batch_size=2)
    whole = work(runs, photos, config, out=photos.parent / "whole")
    killed = photos.parent / "killed"
    shutil.copytree(photos.parent / "whole", killed)
    (killed / "manifest.json").unlink()
    for receipt in (killed / "_shards").glob("part-0000[12]*"):
        receipt.unlink()
    (killed / "pictures" / "p4-0.png").unlink()
    kept = (killed / "part-00000.parquet").stat().st_mtime_ns
    assert work(runs, photos, config, out=killed).hash == whole.hash == read_manifest(killed, "edits").hash
    assert (killed / "part-00000.parquet").stat().st_mtime_ns == kept
