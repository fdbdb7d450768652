"""ImageNet's published files in miniature: the tar of class tars, the validation tar and the development kit."""

import io
import tarfile

import numpy as np
import scipy.io

from semantica.episodes.pages import ReadConfig
from semantica.episodes.sources.imagenet import DEVKIT, TRAIN_TAR, VAL_TAR, ImageNetTrain, ImageNetVal

TRAIN, VAL = ImageNetTrain(), ImageNetVal()
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


def pages_of(source, root, settings=SETTINGS):
    return [page for part in source.parts(root, settings) for page in source.pages(root, part, settings)]
