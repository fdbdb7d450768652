"""An evaluation set: the held-out pictures of an encodings dataset, each once, with its label and the place where it lies.

Every kind of data becomes encodings first (`distributed.evaluation_sets`), so that the manifest's hash names the set's content,
and pictures were decoded, or quarantined, by the one image boundary. In: such a dataset. Out: which pictures there are, and choices
of conditioning images that depend on seeds and ids alone. A picture that stands on several pages is one picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from semantica.data.dataset import read_manifest, read_shard
from semantica.data.location import Location
from semantica.errors import DataError
from semantica.generation.conditions import HELD_OUT, Place
from semantica.generation.generate import Candidate, choose_conditions


@dataclass(frozen=True)
class SetPicture:
    """One picture: id (hash of its bytes), episode and label (a class, or the URL of a page), where it lies, its stored side."""

    image_id: str
    episode_id: str
    label: str
    place: Place
    side_px: int

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.image_id, self.episode_id)


@dataclass(frozen=True)
class EvaluationSet:
    """`pictures` by image_id, in the order in which they lie. empty_labels: classes of which no picture could be used."""

    name: str
    encodings: Location
    hash: str
    pictures: Mapping[str, SetPicture]
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
        return tuple(sorted({picture.label for picture in self.pictures.values()}))

    def check_side(self, resolution_px: int) -> None:
        """Raise DataError when pictures are stored smaller than samples are drawn: they would be enlarged before measuring."""
        side = min(picture.side_px for picture in self.pictures.values())
        if side < resolution_px:
            raise DataError(
                f"evaluate: the pictures of {self.name} are stored with {side} px, and samples have {resolution_px} px; ingest "
                f"them with --image.image-px {resolution_px} or more and encode again, or give the pictures themselves as --data"
            )

    def conditions(self, num: int, seed: int) -> list[tuple[SetPicture, int]]:
        """(conditioning image, sample index) of `num` samples: an image each, drawn without repetition; beyond all, again from the
        first, with the next index.
        """
        chosen = self._chosen(list(self.pictures.values()), num, seed)
        return [(chosen[i % len(chosen)], i // len(chosen)) for i in range(num)]

    def one_a_class(self, num_copies: int, seed: int) -> list[tuple[SetPicture, int]]:
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
        by_label: dict[str, list[SetPicture]] = {label: [] for label in self.labels}
        for picture in self.pictures.values():
            by_label[picture.label].append(picture)
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

    def _chosen(self, pictures: Sequence[SetPicture], num: int, seed: int) -> list[SetPicture]:
        return [self.pictures[c.image_id] for c in choose_conditions([p.candidate for p in pictures], num, seed)]


def some_of(names: Collection[str], num: int, key: str) -> list[str]:
    """At most `num` of the names, sorted: a random choice that depends on `key` and the names alone."""
    return sorted(sorted(names, key=lambda name: hashlib.sha256(f"{key}/{name}".encode()).hexdigest())[:num])


def open_set(
    name: str, encodings: Location, *, quarantined: Mapping[str, int] | None = None, all_labels: Sequence[str] = ()
) -> EvaluationSet:
    """The held-out pictures of finished encodings as an evaluation set. all_labels: those that the source names.

    Raises DataError when there are fewer than two.
    """
    found, num = pictures_in(encodings, HELD_OUT)
    empty = sorted(set(all_labels) - {picture.label for picture in found.values()})
    content = read_manifest(encodings, "encodings").hash
    return EvaluationSet(name, encodings, content, found, num - len(found), quarantined or {}, tuple(empty))


def pictures_in(encodings: Location, prefix: str) -> tuple[dict[str, SetPicture], int]:
    """(the pictures in a sub-folder of finished encodings, each once, how many there are with repeats); no picture is read."""
    found: dict[str, SetPicture] = {}
    num = 0
    for file, entry in enumerate(read_manifest(encodings, "encodings").shards(prefix)):
        table = read_shard(
            encodings, entry, ["episode_id", "page_url", "images.list.element.image_id", "images.list.element.width"]
        )
        groups = np.repeat(np.arange(len(entry.row_group_rows)), entry.row_group_rows).tolist()
        columns = (groups, *(table[column].to_pylist() for column in ("episode_id", "page_url", "images")))
        for group, episode_id, label, images in zip(*columns, strict=True):
            for image in images:
                num += 1
                picture = SetPicture(image["image_id"], episode_id, label, Place(file, group), image["width"])
                found.setdefault(picture.image_id, picture)
    return found, num


class StoredPictures:
    """`stored.read(places, wanted)`: the bytes of pictures of an encodings dataset, row group by row group."""

    def __init__(self, encodings: Location, prefix: str = HELD_OUT) -> None:
        self.encodings = encodings
        self._files = read_manifest(encodings, "encodings").shards(prefix)

    def read(self, wanted: Mapping[str, Place]) -> dict[str, bytes]:
        """image_id -> bytes, in the order of `wanted`. Raises DataError when a file is not readable or a picture is not there."""
        found: dict[str, bytes] = {}
        for place in dict.fromkeys(wanted.values()):
            for row in self._row_group(place)["images"].to_pylist():
                found.update({i["image_id"]: i["bytes"] for i in row if wanted.get(i["image_id"]) == place})
        missing = [name for name in wanted if name not in found]
        if missing:
            raise DataError(f"evaluate: {self.encodings} no longer holds the picture {missing[0]}; delete the output and run again")
        return {name: found[name] for name in wanted}

    def _row_group(self, place: Place) -> pa.Table:
        path = self.encodings / self._files[place.file].path
        try:
            with path.open("rb") as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
                return file.read_row_group(place.group, columns=["images"])
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"evaluate: {path} is not readable ({error}); run jobs.encode again") from None
