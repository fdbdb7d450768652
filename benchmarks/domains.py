"""The pictures of a finished run, by name: evaluation sets of them, and views of its pairs that leave pages out.

In: encodings and scores of `make demo` (or of semantica ingest, semantica encode and semantica pairs). Out: for
benchmarks.orderings, sets of conditioning and reference pictures, and selections for the loader. Nothing is encoded again: a
view is a selection whose other row groups offer no draw.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16

from semantica.conditioning.values import Conditioning
from semantica.data.dataset import read_manifest, read_shard
from semantica.data.pictures import PictureRef
from semantica.data.schemas import HELD_OUT, token_rows
from semantica.errors import DataError
from semantica.generation.generate import choose_conditions
from semantica.pairs.scores import pooled_rows
from semantica.pairs.selection import BandConfig, select, selection_stage

EVERYTHING = -1.0, 1.0
UNSEEN_SHARE = 1 / 3  # of the pages beside the labelled ones, by pictures


@dataclass(frozen=True)
class Listed:
    """A picture by name: its page, and whether it is held out."""

    image_id: str
    page: str
    is_held_out: bool


@dataclass(frozen=True, eq=False)
class Picture:
    """A stored picture with its encodings."""

    image_id: str
    page: str
    data: bytes
    tokens: Float16[np.ndarray, "n d"]
    pooled: Float16[np.ndarray, " p"]


@dataclass(frozen=True)
class EvaluationSet:
    """conditions: names of the conditioning images, in order; reference: of the real pictures; classes: one image of each page."""

    name: str
    conditions: tuple[str, ...]
    reference: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def hash(self) -> str:
        """16 hex digits that name the set."""
        return text_hash([self.name, self.conditions, self.reference, self.classes])


def text_hash(values: object) -> str:
    """16 hex digits that name plain data."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class Run:
    """The encodings and scores of a finished run."""

    def __init__(self, folder: Path) -> None:
        self.encodings, self.scores = folder / "encodings", folder / "scores"
        self.manifest = read_manifest(self.encodings, "encodings")
        read_manifest(self.scores, "scores")
        if not self.manifest.config["store_tokens"]:
            raise DataError(f"orderings: {self.encodings} holds no tokens; encode with --store-tokens")
        self.encoder = dict(self.manifest.facts["encoder"])
        self.mean = np.array(self.manifest.facts["corpus_mean"], np.float64)

    @cached_property
    def listing(self) -> tuple[Listed, ...]:
        """Every picture once, by name; no picture is read."""
        found: dict[str, Listed] = {}
        for is_held_out in (True, False):
            for entry in self.manifest.shards(HELD_OUT if is_held_out else ""):
                table = read_shard(self.encodings, entry, ["page_url", "images.list.element.image_id"])
                for page, images in zip(table["page_url"].to_pylist(), table["images"].to_pylist(), strict=True):
                    for image in images:
                        found.setdefault(image["image_id"], Listed(image["image_id"], page, is_held_out))
        return tuple(found[name] for name in sorted(found))

    def read(self, wanted: Collection[str]) -> dict[str, Picture]:
        """The wanted pictures by name, a shard in memory at a time. Raises DataError when one is not in the run."""
        names, found = set(wanted), dict[str, Picture]()
        shape = (self.encoder["num_tokens"], self.encoder["token_dim"])
        for prefix in (HELD_OUT, ""):
            for entry in self.manifest.shards(prefix):
                if names <= found.keys():
                    break
                table = read_shard(self.encodings, entry, ["page_url", "images", "pooled", "tokens"])
                pooled_of, tokens_of = pooled_rows(table["pooled"]), token_rows(table["tokens"])
                rows = zip(table["page_url"].to_pylist(), table["images"], pooled_of, tokens_of, strict=True)
                for page, images, pooled, tokens in rows:
                    for index, image in enumerate(images.values):
                        name = image["image_id"].as_py()
                        if name in names and name not in found:
                            own = np.array(tokens[index]).reshape(shape)  # a copy: the shard's memory goes
                            found[name] = Picture(name, page, image["bytes"].as_py(), own, pooled[index].astype(np.float16))
        if missing := sorted(names - found.keys()):
            raise DataError(f"orderings: {self.encodings} has no picture {missing[0]} ({len(missing)} are missing); use one ingest")
        return found


def conditioning(pictures: Sequence[Picture]) -> Conditioning:
    """A row for each picture."""
    tokens = torch.from_numpy(np.stack([p.tokens for p in pictures]).astype(np.float32))
    return Conditioning.of(tokens, torch.from_numpy(np.stack([p.pooled for p in pictures]).astype(np.float32)))


def family_of(page: str) -> str:
    """What pages are kept from the page-grouped model together: the folder and the one above it, whose pages are of one kind."""
    return "/".join(page.split("/")[:2])


def unseen_pages(listing: Sequence[Listed], labelled: str) -> frozenset[str]:
    """Pages that neither grouping trains on: families in the order of a hash, until they hold a third of the other pictures."""
    others = [p for p in listing if not is_labelled(p.page, labelled)]
    families = sorted({family_of(p.page) for p in others}, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    chosen, count = set[str](), 0
    for family in families:
        size = sum(family_of(p.page) == family for p in others)
        # A family with more than half of what there is would leave little to learn from.
        if count < UNSEEN_SHARE * len(others) and count + size <= len(others) / 2:
            chosen.add(family)
            count += size
    return frozenset(p.page for p in others if family_of(p.page) in chosen)


def is_labelled(page: str, labelled: str) -> bool:
    """Whether a page is a class of the labelled set: a folder in it."""
    return page.startswith(labelled.rstrip("/") + "/")


def evaluation_sets(
    listing: Sequence[Listed], labelled: str, unseen: Collection[str], *, num: int, num_reference: int, has_pages: bool = True
) -> dict[str, EvaluationSet]:
    """held_out: of the whole run; labelled and pages: held-out pictures of either; unseen: all pictures of the unseen pages.

    has_pages: whether the page-grouped model learns from this run's pages; else there is no set of that name.
    """
    members: Mapping[str, Callable[[Listed], bool]] = {
        "held_out": lambda p: p.is_held_out,
        "labelled": lambda p: p.is_held_out and is_labelled(p.page, labelled),
        "pages": lambda p: p.is_held_out and not is_labelled(p.page, labelled) and p.page not in unseen,
        "unseen": lambda p: p.page in unseen,
    }
    found = {}
    for name, is_member in members.items():
        if name == "pages" and not has_pages:
            continue
        of = [PictureRef(p.image_id, p.page, 0, 0) for p in listing if is_member(p)]
        if len(of) < 2:
            raise DataError(
                f"orderings: expected at least 2 pictures in the set {name}, got {len(of)}; is --labelled {labelled} right?"
            )
        ordered = choose_conditions(of, len(of), 0)
        one_a_page = {c.episode_id: c.image_id for c in reversed(ordered)}
        names = tuple(c.image_id for c in ordered)
        found[name] = EvaluationSet(name, names[:num], names[:num_reference], tuple(sorted(one_a_page.values())))
    return found


def view(run: Run, band: BandConfig, folder: Path, allowed: Callable[[str], bool] | None = None) -> Path:
    """A selection of the run's pairs in the band, in `folder`; of pages that are `allowed` only, where that is given."""
    stage = selection_stage(run.scores, band, folder)
    if allowed is not None:
        stage = replace(stage, inputs={**stage.inputs, "pages": _pages_hash(run, allowed)})
    with stage.held():
        if stage.open() is not None:
            return folder
        if allowed is None:
            select(stage, run.scores, band)
            return folder
        whole = read_manifest(view(run, band, folder.with_name(f"{folder.name}-whole")), "selection")
        groups = _masked(run, whole.facts["row_groups"], allowed)
        stage.finish({"num_targets": sum(draws for _, _, draws in groups)}, {"row_groups": groups})
    return folder


def _pages_hash(run: Run, allowed: Callable[[str], bool]) -> str:
    return text_hash(sorted({p.page for p in run.listing if allowed(p.page)}))


def _masked(run: Run, groups: Sequence[Sequence[int]], allowed: Callable[[str], bool]) -> list[list[int]]:
    """The row groups, those of other pages without a draw. Raises DataError when one holds pages of both kinds."""
    kept: dict[tuple[int, int], bool] = {}
    for file, entry in enumerate(run.manifest.shards()):
        pages = read_shard(run.encodings, entry, ["page_url"])["page_url"].to_pylist()
        start = 0
        for group, num in enumerate(entry.row_group_rows):
            are = {allowed(page) for page in pages[start : start + num]}
            if len(are) > 1:
                raise DataError(
                    f"orderings: row group {group} of {entry.path} holds pages that are kept and others; "
                    "encode with --rows-per-group 1, as the demo does"
                )
            kept[file, group] = are == {True}
            start += num
    return [[file, group, draws if kept[file, group] else 0] for file, group, draws in groups]
