"""The main job on corpora of every size: small ones are fitted, too small ones refused before anything is trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from small import SmallRun, draw_pages

from semantica.config import override
from semantica.data import assets
from semantica.distributed.pipeline import fit_to_corpus
from semantica.distributed.quickstart import obtain, quickstart
from semantica.distributed.runtime import Runtime
from semantica.errors import ConfigError, DataError
from semantica.presets import PipelineConfig, tiny, tiny_concepts
from semantica.tracking import TrackingConfig


def test_a_corpus_that_is_large_enough_changes_nothing() -> None:
    assert fit_to_corpus(tiny(), 300, 30, 2) == (tiny(), 2)
    assert fit_to_corpus(tiny(), 300, 30, 3) == (tiny(), 3)  # which semantica train refuses: 3 workers do not divide its 4 lanes


@pytest.mark.parametrize(
    ("num_held_out", "filled", "lanes", "workers", "conditions"), [(20, 29, 4, 2, 10), (300, 3, 2, 2, 48), (4, 1, 1, 1, 2)]
)
def test_a_small_corpus_gets_fewer_lanes_workers_and_conditions(
    num_held_out: int, filled: int, lanes: int, workers: int, conditions: int
) -> None:
    config, num_workers = fit_to_corpus(tiny(), num_held_out, filled, 2)
    assert (config.train.num_lanes, num_workers, config.generate.num_conditions) == (lanes, workers, conditions)


def test_too_few_held_out_pictures_are_refused_before_training() -> None:
    with pytest.raises(DataError, match="3 pictures are held out, at least 4"):
        fit_to_corpus(tiny(), 3, 29, 2)


def test_html_pages_and_the_folder_preset_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use --preset tiny-html"):
        quickstart(tiny(), source="html-docs", root=None, out=tmp_path / "out", runtime=Runtime())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache on a machine without npm, pip's clip-art in it. Nothing can be downloaded."""
    monkeypatch.setenv("SEMANTICA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    for package in (assets.ARCADE, assets.TWEMOJI):
        folder = assets.package_folder(package) / package.members[0]
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(folder / "one.png")
    return tmp_path / "cache"


def unpack_concepts() -> None:
    """Put packages of concepts into the cache, in which four vendors draw an apple."""
    for package in (assets.NOTO, assets.OPENMOJI, assets.TWEMOJI_SVG, assets.FLUENT, assets.EMOJIBASE):
        folder = (assets.package_folder(package) / package.members[0]).parent
        folder.mkdir(parents=True)
        if package is assets.FLUENT:
            (folder / "assets").mkdir()
            Image.new("RGB", (8, 8), "red").save(folder / "assets" / "1f34e.webp")
        elif package is assets.EMOJIBASE:
            names = [{"hexcode": "1F34E", "label": "red apple", "group": 4}]
            (folder / "compact.json").write_text(json.dumps(names))
        else:
            body = '<rect width="8" height="8" fill="red"/>'
            (folder / "icons.json").write_text(json.dumps({"icons": {"apple": {"body": body}}, "width": 8, "height": 8}))
            (folder / "chars.json").write_text(json.dumps({"1f34e": "apple"}))


def test_without_npm_clip_art_takes_the_place_of_concepts_and_the_reason_is_said(cache: Path) -> None:
    obtained = obtain("concepts")
    assert (obtained.source, obtained.root) == ("clip-art", cache / "sources" / "clip-art")
    assert sorted(path.name for path in obtained.root.iterdir()) == ["sprites", "twemoji"]
    assert "the command 'npm' is not on this machine" in obtained.reason
    assert {licence for _, _, licence in obtained.pictures} == {assets.ARCADE.licence, assets.TWEMOJI.licence}
    assert obtain("clip-art").reason == ""


def test_concepts_in_the_cache_are_used_without_npm(cache: Path) -> None:
    unpack_concepts()
    obtained = obtain("concepts")
    assert (obtained.source, obtained.root, obtained.reason) == ("concepts", cache / "sources" / "concepts", "")
    vendors = sorted(path.name for path in (obtained.root / "red-apple").iterdir())
    assert vendors == ["fluent.webp", "noto.png", "openmoji.png", "twemoji.png"]
    assert ("Noto emoji", "Google, packed by Iconify; package @iconify-json/noto", "Apache-2.0") in obtained.pictures
    shutil.rmtree(cache / "packages")
    assert obtain("concepts") == obtained


def test_a_named_source_that_cannot_be_downloaded_is_refused(cache: Path) -> None:
    with pytest.raises(DataError, match="is not on this machine; install it"):
        obtain("html-docs")


def test_clip_art_in_place_of_concepts_holds_pictures_out_and_says_so(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    class Started(Exception):
        """Of the first stage, which this test does without."""

    def start(config: PipelineConfig, **_: object) -> None:
        asked.append(config)
        raise Started

    monkeypatch.setattr("semantica.distributed.quickstart.pipeline", start)
    settings = {"evaluate.inception": False, "evaluate.perceptual": False, "train.num_steps": 7}
    config = override(tiny_concepts(), settings)
    with pytest.raises(Started):
        quickstart(config, source="concepts", root=None, out=tmp_path / "out", runtime=Runtime())
    assert asked == [replace(override(tiny(), settings), train=config.train, generate=config.generate)]
    assert asked[0].ingest.max_images_per_page > 500
    said = capsys.readouterr().err
    assert "clip-art instead of concepts, with fewer pages, of which pictures are held out" in said
    assert "because download of @lobehub/fluent-emoji-3d 1.1.0: the command 'npm' is not on this machine" in said
    unpack_concepts()
    with pytest.raises(Started):
        quickstart(config, source="concepts", root=None, out=tmp_path / "out", runtime=Runtime())
    assert asked[1] == config
    assert "instead of" not in capsys.readouterr().err


@pytest.mark.ray
def test_one_folder_of_pictures_goes_through_every_stage_and_only_what_changed_is_done_again(
    small_run: SmallRun, tmp_path: Path
) -> None:
    root = draw_pages(tmp_path / "pictures", num_pages=1, num_pictures=24)
    out = tmp_path / "run"
    runtime = override(small_run.runtime, {"tracking": {"uri": "off"}})
    quickstart(small_run.config, source="clip-art", root=root, out=out, runtime=runtime)
    assert (out / "evaluation" / "report.html").exists()
    trained = (out / "checkpoint" / "manifest.json").stat().st_mtime_ns
    other = override(small_run.config, {"evaluate.guidance": 0.0})
    with pytest.raises(DataError, match=r"evaluation .*guidance: was 0\.5, now 0\.0.* --fresh"):
        quickstart(other, source="clip-art", root=root, out=out, runtime=runtime)
    quickstart(other, source="clip-art", root=root, out=out, runtime=override(runtime, {"fresh": True}))
    assert (out / "checkpoint" / "manifest.json").stat().st_mtime_ns == trained


def test_tracking_at_an_address_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    from semantica.tracking import start_run

    with pytest.raises(ConfigError, match=r"tracking\.uri"), start_run("nonsense://x", "e", "n"):
        pass
    assert TrackingConfig().uri == ""
