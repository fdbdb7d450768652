"""An evaluation set: the held-out pictures of an encodings dataset, each once, with its label and the place where it lies.

Every kind of data becomes encodings first (`look`, `ingest_settings`), so that the manifest's hash names the set's content,
and pictures were decoded, or quarantined, by the one image boundary. In: such a dataset. Out: which pictures there are, and choices
of conditioning images that depend on seeds and ids alone. A picture that stands on several pages is one picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from semantica.data.dataset import MANIFEST, Manifest, read_manifest
from semantica.data.location import Location
from semantica.data.pictures import PictureRef, list_pictures
from semantica.episodes.images import ImageConfig
from semantica.episodes.ingest import IngestConfig
from semantica.episodes.pages import ReadConfig
from semantica.episodes.sources.labels import pictures_below
from semantica.episodes.sources.tree import is_picture, open_tree, what_is_there
from semantica.errors import DataError
from semantica.generation.generate import choose_conditions


@dataclass(frozen=True)
class EvaluationSet:
    """`pictures` by image_id, in the order in which they lie; the page_url of a picture is its label.

    empty_labels: classes of which no picture could be used.
    """

    name: str
    encodings: Location
    hash: str
    pictures: Mapping[str, PictureRef]
    num_twice: int = 0  # pictures that stand on several pages, counted once
    quarantined: Mapping[str, int] = field(default_factory=dict)  # reason -> how many
    empty_labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.pictures) < 2:
            refused = ", ".join(f"{n} {reason}" for reason, n in self.quarantined.items())
            raise DataError(
                f"evaluate: {self.name} has {len(self.pictures)} usable pictures, at least 2 are needed"
                + (f" (quarantined: {refused})" if refused else "")
                + "; give more pictures"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label once, sorted."""
        return tuple(sorted({picture.page_url for picture in self.pictures.values()}))

    def check_side(self, resolution_px: int) -> None:
        """Raise DataError when pictures are stored smaller than samples are drawn: they would be enlarged before measuring."""
        side = min(picture.side_px for picture in self.pictures.values())
        if side < resolution_px:
            raise DataError(
                f"evaluate: the pictures of {self.name} are stored with {side} px, and samples have {resolution_px} px; ingest "
                f"them with --image.image-px {resolution_px} or more and encode again, or give the pictures themselves as --data"
            )

    def conditions(self, num: int, seed: int, per_condition: int = 1) -> list[tuple[PictureRef, int]]:
        """(conditioning image, sample index) of `num` samples, per_condition of each image, which are drawn without repetition.

        When all images have that many, samples go on with the next index, again from the first image.
        """
        chosen = self._chosen(list(self.pictures.values()), -(-num // per_condition), seed)
        return [(chosen[i % len(chosen)], i // len(chosen)) for i in range(num)]

    def one_a_class(self, num_copies: int, seed: int) -> list[tuple[PictureRef, int]]:
        """(the conditioning image of the class, sample index) for num_copies samples of every class.

        Raises DataError for fewer than two classes and for a class without a usable picture.
        """
        if self.empty_labels:
            names = ", ".join(repr(label) for label in self.empty_labels[:3])
            raise DataError(
                f"evaluate: one-shot needs a picture of every class, {self.name} has none that can be used of {names}"
                f"{' and more' if len(self.empty_labels) > 3 else ''}; add one, or delete the empty class"
            )
        if len(self.labels) < 2:
            raise DataError(
                f"evaluate: one-shot needs at least 2 classes, {self.name} has {len(self.labels)}; give a folder of class folders, "
                "or Parquet with a column label"
            )
        by_label: dict[str, list[PictureRef]] = {label: [] for label in self.labels}
        for picture in self.pictures.values():
            by_label[picture.page_url].append(picture)
        return [(p, i) for group in by_label.values() for p in self._chosen(group, 1, seed) for i in range(num_copies)]

    def reference(self, without: Sequence[str], num: int | None, seed: int) -> list[str]:
        """The ids of the pictures that samples are compared with: all but `without`, at most `num` of them.

        Which of them has nothing to do with the choice of conditioning images of the same seed.
        """
        left = set(without)
        names = [name for name in self.pictures if name not in left]
        if len(names) < 2:
            raise DataError(
                f"evaluate: {self.name} has {len(names)} pictures that are no conditioning images, at least 2 are needed; "
                "ask for fewer with --num, or compare with all: --reference all"
            )
        return names if num is None else some_of(names, num, f"reference/{seed}")

    def _chosen(self, pictures: Sequence[PictureRef], num: int, seed: int) -> list[PictureRef]:
        return [self.pictures[c.image_id] for c in choose_conditions(pictures, num, seed)]


def some_of(names: Collection[str], num: int, key: str) -> list[str]:
    """At most `num` of the names, sorted: a random choice that depends on `key` and the names alone."""
    return sorted(sorted(names, key=lambda name: hashlib.sha256(f"{key}/{name}".encode()).hexdigest())[:num])


def open_set(
    name: str, encodings: Location, *, quarantined: Mapping[str, int] | None = None, all_labels: Sequence[str] = ()
) -> EvaluationSet:
    """The held-out pictures of finished encodings as an evaluation set. all_labels: those that the source names.

    Raises DataError when there are fewer than two.
    """
    listed = list_pictures(encodings)
    pictures = by_image(listed)
    empty = sorted(set(all_labels) - {picture.page_url for picture in listed})
    content = read_manifest(encodings, "encodings").hash
    return EvaluationSet(name, encodings, content, pictures, len(listed) - len(pictures), quarantined or {}, tuple(empty))


def by_image(pictures: Iterable[PictureRef]) -> dict[str, PictureRef]:
    """image_id -> picture, where it stands first."""
    first: dict[str, PictureRef] = {}
    for picture in pictures:
        first.setdefault(picture.image_id, picture)
    return first


_ANY_ASPECT = 1e9  # ingest's bounds choose what is worth training on; a user has chosen this set
_ANY_NUMBER = 2**31


@dataclass(frozen=True)
class DataKind:
    """What lies at a path: the format that ingest reads it as, or the kind of a finished dataset; and the classes it names."""

    source: str | None
    kind: str = ""
    labels: tuple[str, ...] = ()


def look(name: str, root: Location) -> DataKind:
    """What kind of data `root` is. Raises DataError when it is none, or two at once."""
    if root.is_file():
        return DataKind("pictures")
    if not root.is_dir():
        raise DataError(f"--data {name}: no folder or file {root}; give pictures, class folders, Parquet, or encodings")
    if (root / MANIFEST).exists():
        kind = str(json.loads((root / MANIFEST).read_text()).get("kind"))
        if kind not in ("episodes", "encodings"):
            raise DataError(f"--data {name}: {root} holds {kind}, expected pictures, episodes or encodings")
        return DataKind(None, kind)
    listing = open_tree(root).listing("")
    folders = [folder for folder in listing.folders if not folder.startswith(".")]
    flat = any(is_picture(file) for file in listing.files)
    if flat and folders:
        raise DataError(
            f"--data {name}: {root} holds pictures and folders, so it is neither a folder of pictures nor one of class folders; "
            "give one of them"
        )
    if flat or any(file.lower().endswith(".parquet") for file in listing.files):
        return DataKind("pictures")
    if not folders:
        raise DataError(f"--data {name}: no pictures in {root}, found {what_is_there(open_tree(root))}")
    return DataKind("imagefolder", labels=tuple(folders))


def ingest_settings(source: str, picture_px: int) -> IngestConfig:
    """How evaluation data is read: everything is held out, nothing is left out but what is broken, blank or there twice."""
    return IngestConfig(
        source=source,
        read=ReadConfig(pages_per_part=4),
        image=ImageConfig(image_px=picture_px, min_side_px=1, max_aspect=_ANY_ASPECT),
        max_images_per_page=_ANY_NUMBER,
        drop_near_duplicates=False,
        census_mb=0,
        held_out_share=1.0,
        split_by="image",
        min_images=1,
        rows_per_group=1,
    )


def without_pictures(root: Location, labels: Sequence[str]) -> list[str]:
    """The classes of which `root` holds no picture."""
    tree = open_tree(root) if labels else None
    return [label for label in labels if tree is not None and not pictures_below(tree, label)]


def quarantined_of(encodings: Manifest) -> dict[str, int]:
    """Reason -> how many pictures of the encodings' source were refused."""
    return dict(encodings.facts.get("quarantined", {}))  # encodings made before they said it say nothing
