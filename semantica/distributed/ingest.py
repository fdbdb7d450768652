"""Stage `ingest`: a folder or HTML tree -> episodes, held-out episodes and quarantine, by Ray Data tasks over shards of pages."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from semantica.config import to_dict
from semantica.datasets import Manifest, StageOutput
from semantica.distributed.encode import HELD_OUT
from semantica.distributed.session import stage_session
from semantica.distributed.shards import in_tasks, with_meter
from semantica.episodes.ingest import Census, IngestConfig, ingest_pages, take_census
from semantica.episodes.pages import ImageRef, Page
from semantica.episodes.sources import SOURCES
from semantica.errors import DataError
from semantica.runtime import Runtime
from semantica.tracking import Run


def ingest(
    config: IngestConfig,
    *,
    root: Path,
    out: Path,
    runtime: Runtime,
    parent: Run | None = None,
    pictures: Sequence[tuple[str, str, str]] = (),
) -> Manifest:
    """Turn the pages under `root` into episodes in `out`. Returns the manifest. Raises DataError when there is nothing to train on.

    `pictures`: (what, origin, licence) of the pictures, kept in the manifest and shown in every report.
    """
    pages = SOURCES[config.source](root)
    stage = StageOutput(out.absolute(), "episodes", to_dict(config), {"pages": _listing_hash(pages)})
    with stage_session("ingest", stage, runtime, parent) as session:
        if session.done is not None:
            return session.done
        size = config.pages_per_shard
        shards: list[dict[str, Any]] = [
            {"name": f"part-{start // size:05d}", "pages": [asdict(p) for p in pages[start : start + size]]}
            for start in range(0, len(pages), size)
        ]
        census = sum(map(_census_from, in_tasks(_CountShard, (config,), shards)), Census(0, Counter(), Counter()))
        arguments = (config, census.furniture(config), census.in_training(), stage)
        todo = [s for s in shards if not stage.has_shard(s["name"])]
        with_meter(
            in_tasks(_IngestShard, arguments, todo), "ingest", sum(len(s["pages"]) for s in todo), "pages", lambda r: r["num_pages"]
        )
        counts: Counter[str] = Counter()
        for _, stats in stage.receipts():
            counts.update(stats)
        usable = counts["num_train_images"] + (counts["num_held_out_images"] if config.held_out_share == 1 else 0)
        if not usable:
            reasons = ", ".join(f"{n} {r.removeprefix('num_quarantined_')}" for r, n in _reasons(counts)) or "there are none"
            raise DataError(f"ingest: none of {counts['num_images_in']} pictures under {root} can be used: {reasons}")
        session.run.metrics(counts)
        session.summary = (
            f"{counts['num_train_images']} pictures of {counts['num_train_episodes']} pages, "
            f"{counts['num_held_out_images']} held out, {counts['num_quarantined']} of {counts['num_images_in']} quarantined"
        )
        return stage.finish(counts, {"pictures": [list(p) for p in pictures]})


def _reasons(counts: Counter[str]) -> list[tuple[str, int]]:
    return [(name, n) for name, n in counts.most_common() if name.startswith("num_quarantined_")]


def _pages(shard: dict[str, Any]) -> list[Page]:
    return [Page(**{**p, "images": tuple(ImageRef(**i) for i in p["images"])}) for p in shard["pages"]]


class _CountShard:
    """On how many pages each picture of a shard stands."""

    def __init__(self, config: IngestConfig) -> None:
        self.config = config

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        census = take_census(_pages(shard), self.config, self.config.source)
        return {"num_pages": census.num_pages, "train": dict(census.train), "held_out": dict(census.held_out)}


class _IngestShard:
    """The episodes and the quarantine of a shard of pages."""

    def __init__(self, config: IngestConfig, furniture: frozenset[str], in_training: frozenset[str], stage: StageOutput) -> None:
        self.config, self.furniture, self.in_training, self.stage = config, furniture, in_training, stage

    def __call__(self, shard: dict[str, Any]) -> dict[str, int]:
        result = ingest_pages(_pages(shard), self.furniture, self.config, self.config.source, self.in_training)
        tables = {"": result.train, HELD_OUT: result.held_out, "quarantine": result.quarantine}
        self.stage.write_shard(shard["name"], tables, result.stats, self.config.rows_per_group)
        return result.stats


def _census_from(values: dict[str, Any]) -> Census:
    return Census(values["num_pages"], Counter(values["train"]), Counter(values["held_out"]))


def _listing_hash(pages: Sequence[Page]) -> str:
    """Names the input: pages, references and file sizes. An edit that keeps a file's size is not seen; delete the output then."""
    digest = hashlib.sha256()
    for page in pages:
        digest.update(f"page {page.page_url}\n".encode(errors="surrogateescape"))
        for image in page.images:
            size = Path(image.path).stat().st_size if image.path and Path(image.path).exists() else -1
            digest.update(f"{image.url} {size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
