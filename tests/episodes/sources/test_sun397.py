"""What label episodes SUN397 gives, laid out as published, and that torchvision reads the same labels from it."""

import pytest
from torchvision.datasets import SUN397

from semantica.data.location import location
from semantica.episodes.pages import ReadConfig, Source
from semantica.episodes.quarantine import Reason
from semantica.episodes.sources.sun397 import Sun397Source
from semantica.errors import DataError

SOURCE = Sun397Source()
SETTINGS = ReadConfig(pages_per_part=2, images_per_label=3)
COUNTS = {"a/abbey": 7, "b/balcony/exterior": 3, "b/balcony/interior": 1, "c/church": 2, "c/church/outdoor": 4}


def publish(root, counts=COUNTS):
    for folder, count in counts.items():
        (root / "SUN397" / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / "SUN397" / folder / f"sun_{folder.replace('/', '_')}{i:02d}.jpg").write_bytes(b"x")
    (root / "SUN397" / "ClassName.txt").write_text("".join(f"/{folder}\n" for folder in counts))
    (root / "SUN397" / "README.txt").write_text("readme")


def pages_of(root):
    return [page for part in SOURCE.parts(root, SETTINGS) for page in SOURCE.pages(root, part, SETTINGS)]


def test_every_picture_is_in_one_episode_of_the_label_that_torchvision_gives_it(tmp_path):
    publish(tmp_path)
    theirs = SUN397(tmp_path)
    expected = {(str(path), theirs.classes[label]) for path, label in zip(theirs._image_files, theirs._labels, strict=True)}
    pages = pages_of(tmp_path)
    found = [(image.path, page.page_url) for page in pages for image in page.images]
    assert len(found) == len(expected) == sum(COUNTS.values())
    assert set(found) == expected
    assert [(page.page_url, page.piece, len(page.images)) for page in pages] == [
        ("abbey", "00000", 3),
        ("abbey", "00001", 3),
        ("abbey", "00002", 1),
        ("balcony/exterior", "00000", 3),
        ("balcony/interior", "00000", 1),
        ("church", "00000", 2),
        ("church/outdoor", "00000", 3),
        ("church/outdoor", "00001", 1),
    ]
    assert isinstance(SOURCE, Source)


def test_the_folder_itself_and_a_bucket_give_the_same_episodes(tmp_path):
    bucket = location("memory://sun397")
    publish(tmp_path)
    publish(bucket)

    def shape(root):
        return [(p.page_url, p.piece, [i.url.rpartition("/")[2] for i in p.images]) for p in pages_of(root)]

    assert shape(tmp_path) == shape(tmp_path / "SUN397") == shape(bucket) == shape(bucket / "SUN397")


def test_a_symlink_out_of_the_root_is_refused(tmp_path):
    publish(tmp_path / "root")
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (tmp_path / "root" / "SUN397" / "b" / "balcony" / "interior" / "leak.jpg").symlink_to(tmp_path / "secret.jpg")
    images = [image for page in pages_of(tmp_path / "root") if page.page_url == "balcony/interior" for image in page.images]
    assert sorted(image.problem for image in images) == ["", Reason.OUTSIDE_ROOT]


def test_what_is_not_the_extracted_data_set_is_an_error_that_says_so(tmp_path):
    (tmp_path / "SUN397.tar.gz").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"expected the extracted folder SUN397.*found SUN397\.tar\.gz; extract SUN397\.tar\.gz first"
    ):
        SOURCE.parts(tmp_path, SETTINGS)
    (tmp_path / "other" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"ClassName\.txt in it, found cat/; folders of other classes are read as imagefolder"):
        SOURCE.parts(tmp_path / "other", SETTINGS)
    publish(tmp_path)
    names = tmp_path / "SUN397" / "ClassName.txt"
    names.write_text(names.read_text() + "/z/zoo\n")
    with pytest.raises(DataError, match=r"all 6 classes.*found none of 1 \(SUN397/z/zoo"):
        SOURCE.parts(tmp_path, SETTINGS)


@pytest.mark.parametrize("text", ["", "abbey\n", "/a/abbey\n/a/abbey\n", "/a/../../etc\n/../x\n"])
def test_a_list_of_classes_of_another_shape_is_refused(tmp_path, text):
    publish(tmp_path)
    (tmp_path / "SUN397" / "ClassName.txt").write_text(text)
    with pytest.raises(DataError, match="expected"):
        SOURCE.parts(tmp_path, SETTINGS)
