"""What label episodes ImageNet's published files give: the same in every shape, with the labels that torchvision reads."""

import hashlib
import shutil

import pytest
from torchvision.datasets import ImageFolder, imagenet

from semantica.data.location import location
from semantica.episodes.pages import ReadConfig, Source
from semantica.episodes.sources.imagenet import DEVKIT, VAL_TAR, validation_labels
from semantica.episodes.sources.tree import open_tree
from tests.episodes.sources.imagenet_files import SETTINGS, TRAIN, VAL, WNIDS, pages_of, publish_train, publish_val, train_pictures


@pytest.fixture
def trusting_torchvision(monkeypatch):
    """torchvision takes files of the published names with any MD5 that is told."""

    def trust(root):
        for key, (name, _) in dict(imagenet.ARCHIVE_META).items():
            if (root / name).exists():
                digest = hashlib.md5((root / name).read_bytes()).hexdigest()
                monkeypatch.setitem(imagenet.ARCHIVE_META, key, (name, digest))

    return trust


def shape(pages):
    return [(page.page_url, page.piece, [(image.url, image.problem) for image in page.images]) for page in pages]


def read(image):
    with location(image.path).open("rb") as stream:
        stream.seek(image.offset)
        return stream.read(image.length or None)


def contents(pages):
    """(label, name, bytes) of every picture, sorted."""
    return sorted((page.page_url, image.url.rpartition("/")[2], read(image)) for page in pages for image in page.images)


def test_the_tar_of_tars_gives_every_picture_once_under_its_label(tmp_path):
    publish_train(tmp_path)
    pages = pages_of(TRAIN, tmp_path)
    assert contents(pages) == sorted((wnid, name, data) for wnid, all_of in train_pictures().items() for name, data in all_of)
    assert [(page.page_url, page.piece, len(page.images)) for page in pages] == [
        ("n01440764", "00000", 4),
        ("n01440764", "00001", 4),
        ("n01440764", "00002", 1),
        ("n01443537", "00000", 4),
        ("n02085620", "00000", 2),
    ]
    assert isinstance(TRAIN, Source)


def test_parts_of_the_tar_hold_whole_classes_and_need_no_other(tmp_path):
    publish_train(tmp_path)
    parts = TRAIN.parts(tmp_path, SETTINGS)
    each = [list(TRAIN.pages(tmp_path, part, SETTINGS)) for part in reversed(parts)][::-1]
    assert [sorted({page.page_url for page in pages}) for pages in each] == [[wnid] for wnid in WNIDS]
    (whole,) = TRAIN.parts(tmp_path, ReadConfig(pages_per_part=1000, images_per_label=4))
    assert list(TRAIN.pages(tmp_path, whole, SETTINGS)) == [page for pages in each for page in pages]


def test_the_three_shapes_of_a_split_give_the_same_episodes(tmp_path, trusting_torchvision):
    publish_train(tmp_path)
    publish_val(tmp_path)
    tars = {source: pages_of(source, tmp_path) for source in (TRAIN, VAL)}
    trusting_torchvision(tmp_path)
    theirs = {source: imagenet.ImageNet(tmp_path, source.split) for source in (TRAIN, VAL)}  # extracts train/ and val/
    for source in (TRAIN, VAL):
        folders = pages_of(source, tmp_path)
        assert all(image.length == 0 for page in folders for image in page.images)
        assert shape(folders) == shape(tars[source])
        assert contents(folders) == contents(tars[source])
        expected = {(path, theirs[source].wnids[index]) for path, index in theirs[source].samples}
        assert {(image.path, page.page_url) for page in folders for image in page.images} == expected
        assert shape(pages_of(source, tmp_path / source.split)) == shape(folders)  # the split's folder named itself
    flat = tmp_path / "flat"
    (flat / "val").mkdir(parents=True)
    for path, _ in ImageFolder(tmp_path / "val").samples:
        shutil.copy(path, flat / "val")
    shutil.copy(tmp_path / DEVKIT, flat)
    assert shape(pages_of(VAL, flat)) == shape(tars[VAL])
    assert contents(pages_of(VAL, flat)) == contents(tars[VAL])


def test_the_labels_of_the_kit_are_those_that_torchvision_reads(tmp_path, trusting_torchvision):
    publish_val(tmp_path)
    trusting_torchvision(tmp_path)
    imagenet.parse_devkit_archive(tmp_path)
    ours = validation_labels(open_tree(tmp_path))
    assert ours == imagenet.load_meta_file(tmp_path)[1]
    assert ours[:3] == ["n01443537", "n02085620", "n01440764"]


def test_a_bucket_gives_the_same_episodes(tmp_path):
    bucket = location("memory://imagenet/published")
    for root in (tmp_path, bucket):
        publish_train(root)
        publish_val(root)
    for source in (TRAIN, VAL):
        assert source.parts(tmp_path, SETTINGS) == source.parts(bucket, SETTINGS)
        assert shape(pages_of(source, tmp_path)) == shape(pages_of(source, bucket))
        assert contents(pages_of(source, tmp_path)) == contents(pages_of(source, bucket))


def test_parts_of_the_validation_tar_are_cut_by_the_labels(tmp_path):
    publish_val(tmp_path)
    parts = VAL.parts(tmp_path, SETTINGS)
    assert [(part.paths, part.start, part.stop) for part in parts] == [((VAL_TAR, DEVKIT), 0, 3), ((VAL_TAR, DEVKIT), 3, 4)]
    pages = [list(VAL.pages(tmp_path, part, SETTINGS)) for part in parts]
    assert [[page.page_url for page in each] for each in pages] == [["n01440764", "n01443537", "n01443537"], ["n02085620"]]
