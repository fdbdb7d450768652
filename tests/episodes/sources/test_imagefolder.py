"""What label episodes a folder of class folders gives: every picture once, labels never mixed, and the same on every machine."""

import logging

import pytest
from torchvision.datasets import ImageFolder

from semantica.data.location import location
from semantica.episodes.pages import ReadConfig, Source
from semantica.episodes.quarantine import Reason
from semantica.episodes.sources.labels import ImageFolderSource, in_random_order
from semantica.errors import DataError

SOURCE = ImageFolderSource()
SETTINGS = ReadConfig(pages_per_part=3, images_per_label=4)
COUNTS = {"ant": 9, "bee": 4, "cat": 1, "dog": 30}


def pages_of(root, settings=SETTINGS):
    return [page for part in SOURCE.parts(root, settings) for page in SOURCE.pages(root, part, settings)]


def write(root, name, data=b"x"):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)


def fill(root):
    for label, count in COUNTS.items():
        for i in range(count):
            write(root, f"{label}/{'deep/' * (i % 3)}{i}.jpg")


def test_every_picture_is_in_one_episode_of_its_label(tmp_path):
    fill(tmp_path)
    pages = pages_of(tmp_path)
    expected = {(path, label) for path, index in ImageFolder(tmp_path).samples for label in [sorted(COUNTS)[index]]}
    found = [(image.path, page.page_url) for page in pages for image in page.images]
    assert len(found) == len(expected) == sum(COUNTS.values())
    assert set(found) == expected
    assert all(image.url.startswith(f"{page.page_url}/") for page in pages for image in page.images)


def test_a_label_is_cut_into_chunks_of_which_only_the_last_is_short(tmp_path):
    fill(tmp_path)
    pages = pages_of(tmp_path)
    sizes = {label: [len(page.images) for page in pages if page.page_url == label] for label in COUNTS}
    assert sizes == {"ant": [4, 4, 1], "bee": [4], "cat": [1], "dog": [4] * 7 + [2]}
    assert [page.piece for page in pages if page.page_url == "ant"] == ["00000", "00001", "00002"]
    assert len({(page.page_url, page.piece) for page in pages}) == len(pages)


def test_a_part_holds_its_number_of_episodes_and_needs_no_other(tmp_path):
    fill(tmp_path)
    parts = SOURCE.parts(tmp_path, SETTINGS)
    each = [list(SOURCE.pages(tmp_path, part, SETTINGS)) for part in reversed(parts)][::-1]
    assert [len(pages) for pages in each] == [3, 3, 3, 3, 1]
    assert [part.paths for part in parts] == [("ant",), ("bee", "cat", "dog"), ("dog",), ("dog",), ("dog",)]
    assert [page for pages in each for page in pages] == pages_of(tmp_path, ReadConfig(images_per_label=4))
    assert isinstance(SOURCE, Source)


def test_a_chunk_is_drawn_by_hash_so_that_neighbours_are_apart(tmp_path):
    for i in range(400):
        write(tmp_path, f"c/{i:04d}.png")
    first, *_ = pages_of(tmp_path, ReadConfig(images_per_label=40))
    numbers = [int(image.url[2:6]) for image in first.images]
    assert 150 < sum(numbers) / 40 < 250  # uniform on 0..399: mean 199.5, standard error 18
    assert max(numbers) > 300
    assert min(numbers) < 100
    assert in_random_order(["b", "a"]) == in_random_order(["a", "b"])


def test_a_picture_of_another_size_changes_the_parts_of_its_class_only(tmp_path):
    fill(tmp_path)
    before = SOURCE.parts(tmp_path, SETTINGS)
    (tmp_path / "dog" / "0.jpg").write_bytes(b"longer")
    after = SOURCE.parts(tmp_path, SETTINGS)
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, False, False, False]


def test_a_symlink_out_of_the_root_is_refused(tmp_path):
    root = tmp_path / "root"
    write(tmp_path, "secret/s.png")
    write(root, "a/x.png")
    (root / "a" / "leak.png").symlink_to(tmp_path / "secret" / "s.png")
    (root / "door").symlink_to(tmp_path / "secret")
    (page,) = pages_of(root)
    assert {image.url: image.problem for image in page.images} == {"a/leak.png": Reason.OUTSIDE_ROOT, "a/x.png": ""}


def test_a_bucket_gives_the_same_episodes(tmp_path):
    bucket = location("memory://imagefolder/set")
    fill(tmp_path)
    fill(bucket)
    here, there = pages_of(tmp_path), pages_of(bucket)
    assert SOURCE.parts(tmp_path, SETTINGS) == SOURCE.parts(bucket, SETTINGS)
    assert [(p.page_url, p.piece, [i.url for i in p.images]) for p in here] == [
        (p.page_url, p.piece, [i.url for i in p.images]) for p in there
    ]
    assert all(location(image.path).read_bytes() == b"x" for page in there for image in page.images)


def test_pictures_without_a_class_are_left_out_with_a_warning(tmp_path, caplog):
    fill(tmp_path)
    write(tmp_path, "loose.png")
    with caplog.at_level(logging.WARNING):
        assert {page.page_url for page in pages_of(tmp_path)} == COUNTS.keys()
    assert "1 pictures directly in" in caplog.text


def test_a_root_without_class_folders_is_an_error_that_says_what_is_there(tmp_path):
    write(tmp_path, "a.png")
    write(tmp_path, "notes/readme.md")
    with pytest.raises(DataError, match=r"expected ROOT/CLASS/\*\.jpg.*found notes/, a\.png"):
        SOURCE.parts(tmp_path, SETTINGS)
    with pytest.raises(DataError, match="nowhere is not there; expected the folder of a crawl"):
        SOURCE.parts(tmp_path / "nowhere", SETTINGS)
