"""Evaluation data of any kind -> encodings by a checkpoint's encoder, whose held-out pictures are the evaluation set.

A folder of pictures, class folders, Parquet of pictures, or episodes go through the stages that training data went through, with
everything held out; encodings are taken as they are. So pictures are decoded, and broken ones quarantined, by the one image
boundary, and conditioning images are encoded as the training did.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from semantica.config import from_dict
from semantica.data.dataset import MANIFEST, Manifest, read_manifest
from semantica.data.location import Location, location
from semantica.distributed.encode import encode
from semantica.distributed.generate import check_same_encoder
from semantica.distributed.ingest import ingest
from semantica.encoders.settings import EncodeConfig, EncoderConfig
from semantica.episodes.images import ImageConfig
from semantica.episodes.ingest import IngestConfig
from semantica.episodes.pages import ReadConfig
from semantica.episodes.sources.labels import pictures_below
from semantica.episodes.sources.tree import is_picture, open_tree, what_is_there
from semantica.errors import DataError
from semantica.evaluation.requests import content_hash
from semantica.evaluation.sets import EvaluationSet, open_set
from semantica.runtime import Runtime
from semantica.tracking import Run
from semantica.training.checkpoint import Checkpoint

_ANY_ASPECT = 1e9  # ingest's bounds choose what is worth training on; a user has chosen this set
_ANY_NUMBER = 2**31


@dataclass(frozen=True)
class Found:
    """What lies at a path: the format that ingest reads it as, or the kind of a finished dataset; and the classes it names."""

    source: str | None
    kind: str = ""
    labels: tuple[str, ...] = ()


def look(name: str, root: Location) -> Found:
    """What kind of data `root` is. Raises DataError when it is none, or two at once."""
    if root.is_file():
        return Found("pictures")
    if not root.is_dir():
        raise DataError(f"--data {name}: no folder or file {root}; give pictures, class folders, Parquet, or encodings")
    if (root / MANIFEST).exists():
        kind = str(json.loads((root / MANIFEST).read_text()).get("kind"))
        if kind not in ("episodes", "encodings"):
            raise DataError(f"--data {name}: {root} holds {kind}, expected pictures, episodes or encodings")
        return Found(None, kind)
    listing = open_tree(root).listing("")
    folders = [folder for folder in listing.folders if not folder.startswith(".")]
    flat = any(is_picture(file) for file in listing.files)
    if flat and folders:
        raise DataError(
            f"--data {name}: {root} holds pictures and folders, so it is neither a folder of pictures nor one of class folders; "
            "give one of them"
        )
    if flat or any(file.lower().endswith(".parquet") for file in listing.files):
        return Found("pictures")
    if not folders:
        raise DataError(f"--data {name}: no pictures in {root}, found {what_is_there(open_tree(root))}")
    return Found("imagefolder", labels=tuple(folders))


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


def prepare_set(
    name: str,
    root: Location,
    *,
    checkpoint: Checkpoint,
    picture_px: int,
    batch_size: int,
    encoder: str,
    out: Location,
    runtime: Runtime,
    parent: Run | None,
) -> EvaluationSet:
    """The evaluation set at `root`, encoded with the checkpoint's encoder. encoder: a folder of its weights, "" where they lie.

    Raises DataError for data that is no set, and when the encoder is not the one that the checkpoint was trained with.
    """
    found = look(name, root)
    trained_with = dict(checkpoint.provenance.encoder["identity"])
    if found.kind == "encodings":
        given = read_manifest(root, "encodings")
        check_same_encoder(trained_with, given)
        return open_set(name, root, quarantined=_not_used(given))
    episodes, empty = root, _without_pictures(root, found.labels)
    if found.source is not None:
        episodes = out / "data" / name / "episodes"
        if len(empty) == len(found.labels) and found.labels:
            raise DataError(f"--data {name}: no pictures in the {len(empty)} folders of {root}")
        ingest(ingest_settings(found.source, picture_px), root=root, out=episodes, runtime=runtime, parent=parent)
    values = dict(checkpoint.provenance.encoder["config"]) | ({"weights": encoder} if encoder else {})
    settings = EncodeConfig(encoder=from_dict(EncoderConfig, values), store_tokens=False, batch_size=batch_size, rows_per_group=1)
    encodings = out / "data" / name / f"encodings-{content_hash(trained_with)[:8]}"
    made = encode(settings, episodes=episodes, out=encodings, runtime=runtime, parent=parent)
    check_same_encoder(trained_with, made)
    return open_set(name, location(encodings), quarantined=_not_used(made), all_labels=found.labels)


def _without_pictures(root: Location, labels: Sequence[str]) -> list[str]:
    tree = open_tree(root) if labels else None
    return [label for label in labels if tree is not None and not pictures_below(tree, label)]


def _not_used(encodings: Manifest) -> dict[str, int]:
    return dict(encodings.facts.get("quarantined", {}))  # encodings made before they said it say nothing
