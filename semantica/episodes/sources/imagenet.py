"""ImageNet (ILSVRC2012) as published: the tar of class tars, the validation tar with the devkit, or the extracted folders.

In: the folder that holds one of these for the split, local or in a bucket. Out: label episodes (see `labels`) whose page_url is the
WordNet ID. The pictures are the same in every form. In a tar they are read in place, since a tar inside an uncompressed tar is
contiguous. In a bucket, a tar takes one request per picture before the first picture is read, so extract it there.

The first of these that exists is read: the folder `train` or `val` (`val` with class folders, or flat with the devkit), the split's
tar, class folders in the root itself.

The labels of the validation pictures come from the published development kit (ILSVRC2012_devkit_t12.tar.gz), which is read as
untrusted bytes: MATLAB's format holds numbers and text, never code, and the unpacked size is limited.
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from semantica.data.location import Location, location
from semantica.episodes.pages import Page, Part, ReadConfig
from semantica.episodes.quarantine import DamagedFile, utf8
from semantica.episodes.sources import source
from semantica.episodes.sources.labels import (
    LabelClass,
    class_folders,
    folder_parts,
    label_pages,
    num_label_pages,
    pictures_below,
    pictures_in,
    slices,
)
from semantica.episodes.sources.tree import Tree, fingerprint, join, open_tree, what_is_there
from semantica.episodes.sources.webdataset import open_tar, tar_image, tar_members, tar_pictures
from semantica.errors import DataError

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META = "data/meta.mat"  # ID -> WordNet ID
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"  # one ID per line, in the order of the pictures
MAX_MEMBER_BYTES = 1 << 20  # of META and of TRUTH; MATLAB's own compression inside them is at most 1000 to 1
MAX_UNPACKED_BYTES = 64 << 20  # of the whole kit


def validation_labels(tree: Tree) -> list[str]:
    """The WordNet IDs of the validation pictures, in the order of their names. Raises DataError when the kit does not give them."""
    file = tree.image_ref(DEVKIT)
    where = tree.root / DEVKIT
    if file.problem:
        raise DataError(f"ingest: {where}: expected the development kit, which labels the validation pictures, got {file.detail}")
    meta, truth = _members(file.path, str(where))
    ids = _wordnet_ids(meta, str(where))
    try:
        return [ids[int(line)] for line in truth.split()]
    except (KeyError, ValueError) as error:
        raise DataError(f"ingest: {where}: {TRUTH}: expected one ID of {META} per line, got {error}") from None


def _members(path: str, where: str) -> tuple[bytes, bytes]:
    """The bytes of META and of TRUTH."""
    contents: dict[str, bytes] = {}
    try:
        with location(path).open("rb") as stream, tarfile.open(fileobj=stream, mode="r|gz") as archive:
            for member in archive:
                name = next((name for name in (META, TRUTH) if f"/{member.name}".endswith(f"/{name}")), None)
                if member.offset_data + member.size > MAX_UNPACKED_BYTES or (name and member.size > MAX_MEMBER_BYTES):
                    raise DataError(
                        f"ingest: {where}: expected {MAX_MEMBER_BYTES} bytes at most, got {member.size} in {member.name}"
                    )
                content = archive.extractfile(member) if name else None
                if name and content:
                    contents[name] = content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
        raise DataError(f"ingest: {where}: expected the kit as published, got a file that is damaged ({error})") from None
    missing = [name for name in (META, TRUTH) if name not in contents]
    if missing:
        raise DataError(f"ingest: {where}: expected {META} and {TRUTH} in it, found no {' and no '.join(missing)}")
    return contents[META], contents[TRUTH]


def _wordnet_ids(meta: bytes, where: str) -> dict[int, str]:
    """ID -> WordNet ID of the classes, which are the synsets without children."""
    from scipy.io import loadmat  # late: no other source needs scipy

    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"])
        rows = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True)
        return {int(number): str(wordnet_id) for number, wordnet_id, num_children in rows if num_children == 0}
    except Exception as error:  # noqa: BLE001 - the reader raises any exception on damaged bytes; the message keeps the text
        raise DataError(f"ingest: {where}: {META}: expected the table `synsets`, got {type(error).__name__}: {error}") from None


TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
IMAGES_PER_CLASS = 1300  # at most, in the training set

_CLASS = re.compile(r"n[0-9]{8}\Z")
_CLASS_TAR = re.compile(r"(?:.*/)?(n[0-9]{8})\.tar\Z")


class _ImageNet:
    """Label episodes of one split of ImageNet."""

    split: Literal["train", "val"]

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """Runs of `pages_per_part` label episodes; of a tar of tars, runs of whole classes with about as many.

        Of a tar, only the outer headers are read. Raises DataError when no form of the split exists, or its labels are missing.
        """
        tree = open_tree(root)
        here = tree.listing("")
        if self.split == "val" and "val" in here.folders and (flat := pictures_in(tree, "val")):
            num_labels = len(validation_labels(tree))
            if num_labels != len(flat):
                raise DataError(f"ingest: {root}: expected {num_labels} pictures in val, as {DEVKIT} says, got {len(flat)}")
            return _validation_parts(tree, "val", fingerprint(flat.items()), settings)
        if self.split in here.folders:
            return folder_parts(_classes(tree, self.split), settings)
        if self.split == "train" and TRAIN_TAR in here.files:
            return _tar_parts(tree, settings)
        if self.split == "val" and VAL_TAR in here.files:
            return _validation_parts(tree, VAL_TAR, str(here.files[VAL_TAR]), settings)
        if any(_CLASS.match(name) for name in here.folders):
            return folder_parts(_classes(tree, ""), settings)
        tar = TRAIN_TAR if self.split == "train" else f"{VAL_TAR} with {DEVKIT}"
        raise DataError(
            f"ingest: {root}: expected the folder {self.split}, or {tar}, or class folders like n01440764, "
            f"found {what_is_there(tree)}"
        )

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """The label episodes of the part. Raises DamagedFile for a tar that is cut short or holds something else."""
        tree = open_tree(root)
        if part.paths == (TRAIN_TAR,):
            return _tar_pages(tree, part, settings)
        if part.paths[1:] == (DEVKIT,):
            return label_pages(_validation_classes(tree, part.paths[0]), part.start, part.stop, settings)
        classes = (_folder_class(tree, folder, folder.rpartition("/")[2], pictures_below(tree, folder)) for folder in part.paths)
        return label_pages(classes, part.start, part.stop, settings)


@source("imagenet-train", labels=True)
class ImageNetTrain(_ImageNet):
    """The training pictures."""

    split = "train"


@source("imagenet-val", labels=True)
class ImageNetVal(_ImageNet):
    """The validation pictures."""

    split = "val"


def _classes(tree: Tree, top: str) -> dict[str, dict[str, int]]:
    """The class folders in `top`, as input of folder_parts. Raises DataError when there are none, or other folders."""
    classes = class_folders(tree, top)
    wrong = [folder for folder in classes if not _CLASS.match(folder.rpartition("/")[2])]
    if wrong or not classes:
        got = wrong[0] if wrong else what_is_there(tree, top)
        raise DataError(
            f"ingest: {tree.root / top}: expected class folders like n01440764 with pictures, found {got}; "
            "folders of other classes are read as imagefolder"
        )
    return classes


# --- the training pictures: a tar of class tars ---


def _tar_parts(tree: Tree, settings: ReadConfig) -> list[Part]:
    """Parts of several whole class tars each; start and stop are their bytes in the outer tar.

    When the outer tar is damaged, the bytes from the damage to the end are a part of their own, which `_tar_pages` refuses. Its
    stop is 0, which means the end.
    """
    size = tree.listing("").files[TRAIN_TAR]
    tars: list[tarfile.TarInfo] = []
    ends = [0]
    damaged = False
    try:
        with open_tar(tree, TRAIN_TAR) as stream:
            for member in tar_members(stream, TRAIN_TAR, 0, size):
                tars.append(member)
                ends.append(-(-(member.offset_data + member.size) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
    except DamagedFile as error:
        if not tars:
            raise DataError(f"ingest: {tree.root / TRAIN_TAR}: expected a tar of class tars, got {error.detail}") from None
        damaged = True
    labels = [_class_of(member) for member in tars]
    if not labels or len(set(labels)) < len(labels):
        raise DataError(f"ingest: {tree.root / TRAIN_TAR}: expected class tars, each once, got {'one twice' if labels else 'none'}")
    step = max(1, settings.pages_per_part // num_label_pages(IMAGES_PER_CLASS, settings))
    parts = []
    for first in range(0, len(tars), step):
        run = tars[first : first + step]
        mark = fingerprint((member.name, member.size) for member in run)
        parts.append(Part((TRAIN_TAR,), ends[first], ends[first + len(run)], f"{size}-{mark}"))
    return [*parts, Part((TRAIN_TAR,), ends[-1], fingerprint=str(size))] if damaged else parts


def _tar_pages(tree: Tree, part: Part, settings: ReadConfig) -> Iterator[Page]:
    """The label episodes of the class tars that lie in the part's bytes of the outer tar."""
    path = tree.image_ref(TRAIN_TAR).path
    with open_tar(tree, TRAIN_TAR) as stream:
        size = tree.listing("").files[TRAIN_TAR]
        for outer in tar_members(stream, TRAIN_TAR, part.start, part.stop or size, is_slice=part.stop > 0):
            label = _class_of(outer)
            inside = list(tar_members(stream, TRAIN_TAR, outer.offset_data, outer.offset_data + outer.size))
            pictures = tar_pictures(inside, f"{TRAIN_TAR}/{outer.name}")
            yield from label_pages([_tar_class(path, label, pictures)], 0, len(pictures), settings)


def _class_of(member: tarfile.TarInfo) -> str:
    """The WordNet ID of the class in a member of the outer tar."""
    match = _CLASS_TAR.match(member.name)
    if not match or not member.isfile() or member.issparse():
        raise DataError(f"ingest: {TRAIN_TAR}: expected class tars like n01440764.tar in it, got {utf8(member.name)[:80]!r}")
    return match[1]


# --- the validation pictures: flat, with the labels in the development kit ---


def _validation_parts(tree: Tree, pictures: str, mark: str, settings: ReadConfig) -> list[Part]:
    """Parts of label episodes, counted from the labels alone; `pictures` is the tar or the folder."""
    counts = Counter(validation_labels(tree))
    num_pages = sum(num_label_pages(count, settings) for count in counts.values())
    mark = f"{mark}-{tree.listing('').files[DEVKIT]}"
    return [Part((pictures, DEVKIT), start, stop, mark) for start, stop in slices(num_pages, settings)]


def _validation_classes(tree: Tree, pictures: str) -> list[LabelClass]:
    """The classes, in the order of their WordNet IDs. Raises DamagedFile when the numbers of pictures and labels differ."""
    labels = validation_labels(tree)
    members: dict[str, tarfile.TarInfo] = {}
    if pictures == VAL_TAR:
        with open_tar(tree, VAL_TAR) as stream:
            members = tar_pictures(tar_members(stream, VAL_TAR, 0, tree.listing("").files[VAL_TAR]), VAL_TAR)
    names = sorted(members or pictures_in(tree, pictures))
    if len(names) != len(labels):
        raise DamagedFile(pictures, f"expected {len(labels)} pictures, as {DEVKIT} says, got {len(names)}")
    classes: dict[str, list[str]] = {}
    for name, label in zip(names, labels, strict=True):
        classes.setdefault(label, []).append(name)
    path = tree.image_ref(pictures).path
    return [
        _tar_class(path, label, {name: members[name] for name in inside})
        if members
        else _folder_class(tree, pictures, label, inside)
        for label, inside in sorted(classes.items())
    ]


# --- classes; the URL of a picture is LABEL/NAME in every form ---


def _folder_class(tree: Tree, folder: str, label: str, names: Collection[str]) -> LabelClass:
    """The class whose pictures lie in a folder."""
    return LabelClass(label, names, lambda name: replace(tree.image_ref(join(folder, name)), url=utf8(f"{label}/{name}")))


def _tar_class(path: str, label: str, members: Mapping[str, tarfile.TarInfo]) -> LabelClass:
    """The class whose pictures are these members of the tar at `path`."""
    return LabelClass(label, members, lambda name: tar_image(path, utf8(f"{label}/{name}"), members[name]))
