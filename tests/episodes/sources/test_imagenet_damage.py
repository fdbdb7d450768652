"""ImageNet's files damaged, or of another shape: a damaged part or an error that says what is there."""

import io
import logging
import tarfile

import pytest

from semantica.episodes.quarantine import DamagedFile, Reason
from semantica.episodes.sources.imagenet import DEVKIT, MAX_MEMBER_BYTES, TRAIN_TAR, VAL_TAR
from semantica.errors import DataError
from tests.episodes.sources.imagenet_files import (
    SETTINGS,
    TRAIN,
    VAL,
    devkit,
    pages_of,
    publish_train,
    publish_val,
    tar_of,
    train_pictures,
    val_pictures,
)


def cut_in(wnid):
    """A length of the training tar that ends in the middle of this class."""
    stream = io.BytesIO(tar_of([(f"{w}.tar", tar_of(pictures)) for w, pictures in train_pictures().items()]))
    with tarfile.open(fileobj=stream) as archive:
        return archive.getmember(f"{wnid}.tar").offset_data + 700


@pytest.mark.parametrize("at", ["in a class", "between classes", "in a header"])
def test_a_truncated_tar_of_tars_is_one_damaged_part_after_the_whole_classes(tmp_path, at):
    ends = {"in a class": 0, "between classes": -700 - 512, "in a header": -700 - 100}
    publish_train(tmp_path, cut_in("n02085620") + ends[at])
    *good, bad = TRAIN.parts(tmp_path, SETTINGS)
    pages = [page for part in good for page in TRAIN.pages(tmp_path, part, SETTINGS)]
    assert [page.page_url for page in pages] == ["n01440764"] * 3 + ["n01443537"]
    with pytest.raises(DamagedFile, match=TRAIN_TAR):
        list(TRAIN.pages(tmp_path, bad, SETTINGS))


def test_a_class_tar_that_is_damaged_inside_is_a_damaged_part(tmp_path):
    pictures = train_pictures()
    broken = tar_of(pictures["n01443537"])
    variants = [
        broken[:1500],  # ends in a picture
        broken[:2048] + b"\x01" * 512 + broken[2560:],  # of full length, but its second header is none
        tar_of([*pictures["n01443537"], pictures["n01443537"][0]]),  # one name twice
        b"no tar" * 1000,
        b"",
    ]
    for damaged in variants:
        inner = [("n01440764.tar", tar_of(pictures["n01440764"])), ("n01443537.tar", damaged)]
        (tmp_path / TRAIN_TAR).write_bytes(tar_of(inner))
        good, bad = TRAIN.parts(tmp_path, SETTINGS)
        assert len(list(TRAIN.pages(tmp_path, good, SETTINGS))) == 3
        with pytest.raises(DamagedFile):
            list(TRAIN.pages(tmp_path, bad, SETTINGS))


def test_a_truncated_validation_tar_is_a_damaged_file(tmp_path):
    publish_val(tmp_path)
    whole = (tmp_path / VAL_TAR).read_bytes()
    for end in (len(whole) // 2, 512, 0):
        (tmp_path / VAL_TAR).write_bytes(whole[:end])
        for part in VAL.parts(tmp_path, SETTINGS):
            with pytest.raises(DamagedFile, match=VAL_TAR):
                list(VAL.pages(tmp_path, part, SETTINGS))


def test_as_many_pictures_as_labels_are_expected(tmp_path):
    publish_val(tmp_path, truth=b"1\n2\n")
    (part,) = VAL.parts(tmp_path, SETTINGS)
    with pytest.raises(DamagedFile, match=r"expected 2 pictures.*got 14"):
        list(VAL.pages(tmp_path, part, SETTINGS))
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "a.JPEG").write_bytes(b"x")
    with pytest.raises(DataError, match=r"expected 2 pictures in val.*got 1"):
        VAL.parts(tmp_path, SETTINGS)


def test_members_that_are_no_files_or_empty_are_pictures_with_a_problem(tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        link = tarfile.TarInfo("n01440764_2.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(tarfile.TarInfo("n01440764_1.JPEG"))
        archive.addfile(link)
    (tmp_path / TRAIN_TAR).write_bytes(tar_of([("n01440764.tar", stream.getvalue())]))
    (page,) = pages_of(TRAIN, tmp_path)
    assert {image.url: image.problem for image in page.images} == {
        "n01440764/n01440764_1.JPEG": Reason.EMPTY_FILE,
        "n01440764/n01440764_2.JPEG": Reason.UNREADABLE_FILE,
    }


# --- roots of another shape ---


def test_a_root_of_another_shape_is_an_error_that_says_what_is_there(tmp_path, caplog):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"expected the folder train, or ILSVRC2012_img_train\.tar.*found cats/"):
        TRAIN.parts(tmp_path, SETTINGS)
    with pytest.raises(DataError, match=r"expected the folder val, or ILSVRC2012_img_val\.tar with.*found cats/"):
        VAL.parts(tmp_path, SETTINGS)
    (tmp_path / "n01440764").mkdir()
    with pytest.raises(DataError, match=r"like n01440764 with pictures, found cats; .*imagefolder"):
        TRAIN.parts(tmp_path, SETTINGS)
    (tmp_path / TRAIN_TAR).write_bytes(tar_of(val_pictures()))
    with pytest.raises(DataError, match=r"expected class tars like n01440764\.tar in it, got 'ILSVRC2012_val_00000001\.JPEG'"):
        TRAIN.parts(tmp_path, SETTINGS)
    (tmp_path / TRAIN_TAR).write_bytes(b"no tar" * 1000)
    with pytest.raises(DataError, match="expected a tar of class tars"):
        TRAIN.parts(tmp_path, SETTINGS)
    (tmp_path / TRAIN_TAR).unlink()
    (tmp_path / "train").symlink_to(tmp_path / "cats")
    with caplog.at_level(logging.WARNING), pytest.raises(DataError):
        TRAIN.parts(tmp_path, SETTINGS)


def test_a_tar_behind_a_symlink_out_of_the_root_is_never_opened(tmp_path):
    publish_train(tmp_path)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / TRAIN_TAR).symlink_to(tmp_path / TRAIN_TAR)
    with pytest.raises(DataError, match="a symlink leaves the root"):
        TRAIN.parts(tmp_path / "root", SETTINGS)


@pytest.mark.parametrize(
    ("kit", "message"),
    [
        (None, "expected the development kit.*no such file"),
        (b"no gzip", "a file that is damaged"),
        (devkit(b"1\n")[:200], "a file that is damaged"),
        (tar_of([("x/data/meta.mat", b"x")], "w:gz"), "found no data/ILSVRC2012_validation_ground_truth.txt"),
        (devkit(b"1\n", b"no matlab"), "expected the table `synsets`"),
        (devkit(b"1\n9\n"), "expected one ID of data/meta.mat per line, got 9"),
        (devkit(b"1\ncat\n"), "expected one ID of data/meta.mat per line.*cat"),
        (devkit(b"4\n"), "got 4"),  # not a leaf
        (devkit(b"1\n", bytes(MAX_MEMBER_BYTES + 1)), "bytes at most"),
    ],
)
def test_a_kit_that_does_not_say_the_labels_is_an_error(tmp_path, kit, message):
    publish_val(tmp_path)
    (tmp_path / DEVKIT).unlink()
    if kit is not None:
        (tmp_path / DEVKIT).write_bytes(kit)
    with pytest.raises(DataError, match=message):
        VAL.parts(tmp_path, SETTINGS)
