"""What label episodes ImageNet's published files give: the same in every shape, with the labels that torchvision reads."""

import hashlib
import io
import logging
import shutil
import tarfile

import numpy as np
import pytest
import scipy.io
from torchvision.datasets import ImageFolder, imagenet

from semantica.episodes.pages import ReadConfig, Source
from semantica.episodes.quarantine import DamagedFile, Reason
from semantica.episodes.sources.devkit import DEVKIT, MAX_MEMBER_BYTES, validation_labels
from semantica.episodes.sources.imagenet import TRAIN_TAR, VAL_TAR, ImageNetSource
from semantica.episodes.sources.tree import open_tree
from semantica.errors import DataError
from semantica.storage import location

TRAIN, VAL = ImageNetSource("train"), ImageNetSource("val")
SETTINGS = ReadConfig(pages_per_part=3, images_per_label=4)
COUNTS = {"n01440764": 9, "n01443537": 4, "n02085620": 2}
WNIDS = list(COUNTS)


def tar_of(members, mode="w"):
    """The bytes of a tar with these members, written by tarfile."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def train_pictures():
    return {
        wnid: [(f"{wnid}_{i}.JPEG", f"{wnid} {i}".encode() * (100 + i)) for i in range(count)] for wnid, count in COUNTS.items()
    }


def val_pictures(count=14):
    return [(f"ILSVRC2012_val_{i:08d}.JPEG", f"val {i}".encode() * (100 + i)) for i in range(1, count + 1)]


def publish_train(root, end=None):
    root.mkdir(parents=True, exist_ok=True)
    inner = [(f"{wnid}.tar", tar_of(pictures)) for wnid, pictures in train_pictures().items()]
    (root / TRAIN_TAR).write_bytes(tar_of(inner)[:end])


def meta_mat():
    """`synsets` as in the kit: leaves first, then what is above them, with MATLAB's nested cells."""
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O"), ("children", "O")]
    fields += [("wordnet_height", "O"), ("num_train_images", "O")]
    rows = np.empty((4, 1), dtype=fields)
    leaves = [(number, wnid, 0, np.zeros((1, 0))) for number, wnid in zip((3, 1, 2), WNIDS, strict=True)]
    for i, (number, wnid, num_children, children) in enumerate([*leaves, (4, "n00001740", 3, np.array([[1, 2, 3]]))]):
        rows[i, 0] = (number, wnid, f"word {i}, other", "gloss", num_children, children, 0, 1300)
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"synsets": rows}, do_compression=True)
    return stream.getvalue()


def devkit(truth, meta=None):
    members = [
        ("ILSVRC2012_devkit_t12/readme.txt", b"readme"),
        ("ILSVRC2012_devkit_t12/data/meta.mat", meta_mat() if meta is None else meta),
        ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth),
    ]
    return tar_of(members, "w:gz")


def publish_val(root, truth=b"1\n2\n3\n3\n1\n1\n2\n3\n1\n1\n1\n2\n3\n1\n"):
    root.mkdir(parents=True, exist_ok=True)
    (root / VAL_TAR).write_bytes(tar_of(reversed(val_pictures())))  # the tar's order is not the names'
    (root / DEVKIT).write_bytes(devkit(truth))


@pytest.fixture
def trusting_torchvision(monkeypatch):
    """torchvision takes files of the published names with any MD5 that is told."""

    def trust(root):
        for key, (name, _) in dict(imagenet.ARCHIVE_META).items():
            if (root / name).exists():
                digest = hashlib.md5((root / name).read_bytes()).hexdigest()
                monkeypatch.setitem(imagenet.ARCHIVE_META, key, (name, digest))

    return trust


def pages_of(source, root, settings=SETTINGS):
    return [page for part in source.parts(root, settings) for page in source.pages(root, part, settings)]


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


# --- damage ---


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
        (devkit(b"1\n9\n"), "expected one ID of data/meta.mat a line, got 9"),
        (devkit(b"1\ncat\n"), "expected one ID of data/meta.mat a line.*cat"),
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
