"""Applications over folders: which files belong together, which pictures are refused, and that a batch changes nothing."""

import numpy as np
import pytest
from PIL import Image

from semantica.applications.folder import Folders, apply
from semantica.applications.settings import ApplyConfig
from semantica.errors import ConfigError, DataError

CONFIG = ApplyConfig(num_steps=4, strength=0.6, factor=2, num=3, num_iterations=2)
TASKS = ["edit", "refine", "inpaint", "vary", "interpolate", "invert"]


@pytest.fixture
def folders(make, tmp_path):
    """Three pictures in photos/, one of them in a folder below, with a mask and another picture each."""
    hole = np.zeros((40, 40), np.uint8)
    hole[10:30, 10:30] = 255
    for number, name in enumerate(["a", "b", "deep/c"], start=1):
        for kind, data in (("photos", make.picture(number, 40)), ("like", make.picture(number + 9, 40))):
            (tmp_path / kind / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / kind / f"{name}.png").write_bytes(data)
        (tmp_path / "masks" / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(hole).save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


def for_task(folders, task):
    masks = folders / "masks" if task == "inpaint" else None
    return Folders(folders / "photos", str(folders / "like") if task == "interpolate" else "self", masks)


def close(one, other):
    """Samples of another batch size differ by rounding."""
    return all(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1 for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_a_picture_has_the_same_result_alone_and_among_others(model, folders, task):
    given = for_task(folders, task)
    given.check(task)
    items = given.items()
    together = apply(model, task, items, given, CONFIG)
    alone = [apply(model, task, [item], given, CONFIG)[0] for item in items]
    assert [drawn.item.name for drawn in together] == ["a", "b", "deep/c"]
    assert {len(drawn.samples) for drawn in together} == {3 if task == "interpolate" else 1}
    assert all(close(one.samples, other.samples) for one, other in zip(together, alone, strict=True))
    assert all((drawn.z is not None) == (task == "invert") for drawn in together)


def test_an_edit_of_the_folder_is_the_edit_of_each_picture(model, folders):
    given = Folders(folders / "photos", str(folders / "like" / "a.png"))
    (drawn, *_) = apply(model, "edit", given.items(), given, CONFIG)
    own = model.edit(folders / "photos" / "a.png", folders / "like" / "a.png", strength=0.6, num_steps=4)
    assert close(drawn.samples, own)


def test_a_picture_that_cannot_be_used_is_refused_and_the_others_go_on(model, folders):
    (folders / "photos" / "b.png").write_text("no picture")
    (folders / "masks" / "deep" / "c.png").unlink()
    given = for_task(folders, "inpaint")
    good, broken, unmasked = apply(model, "inpaint", given.items(), given, CONFIG)
    assert len(good.samples) == 1
    assert good.reason == ""
    assert "b.png" in broken.reason
    assert unmasked.reason.startswith("mask: no picture deep/c in")
    assert not broken.samples
    assert not unmasked.samples


def test_a_mask_of_another_size_or_without_a_hole_is_refused(model, folders):
    Image.new("L", (10, 10), 255).save(folders / "masks" / "a.png")
    Image.new("L", (40, 40), 0).save(folders / "masks" / "b.png")
    given = for_task(folders, "inpaint")
    other, empty, good = apply(model, "inpaint", given.items(), given, CONFIG)
    assert "the mask is 10x10, but its picture is 40x40" in other.reason
    assert "no hole" in empty.reason
    assert good.samples


@pytest.mark.parametrize(
    ("task", "like", "masks", "message"),
    [
        ("inpaint", "self", None, "masks: inpaint needs a mask per picture"),
        ("refine", "self", "masks", "masks: refine takes no masks"),
        ("interpolate", "self", None, "like: interpolate goes from each picture to another"),
        ("invert", "none", None, "like: invert draws what the encoder says"),
        ("vary", "like", None, "like: vary draws variations of the pictures themselves"),
    ],
)
def test_a_task_says_what_it_lacks_and_what_it_does_not_take(task, like, masks, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        Folders(tmp_path, like, masks and tmp_path / masks).check(task)


def test_two_files_of_one_name_and_an_empty_folder_are_refused(folders, make):
    (folders / "photos" / "a.jpg").write_bytes(make.picture(5, 40))
    with pytest.raises(DataError, match=r"a\.jpg and a\.png .* have one name"):
        Folders(folders / "photos").items()
    (folders / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures under"):
        Folders(folders / "empty").items()


def test_hashes_change_with_bytes_and_names_and_not_with_the_place(folders, make):
    given = for_task(folders, "inpaint")
    before = given.hashes(given.items())
    assert set(before) == {"pictures", "masks"}
    moved = folders.rename(folders.with_name("moved"))
    given = for_task(moved, "inpaint")
    assert given.hashes(given.items()) == before
    (moved / "photos" / "a.png").write_bytes(make.picture(5, 40))
    after = given.hashes(given.items())
    assert after["pictures"] != before["pictures"]
    assert after["masks"] == before["masks"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("strength", 1.5), ("until", -0.1), ("factor", 0), ("num", 1), ("guidance", -1.0), ("sampler", "euler"), ("num_steps", 0)],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        ApplyConfig(**{field: value})
