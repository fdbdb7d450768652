"""Stage `ingest`: a crawl -> episodes, held-out episodes and quarantine, by tasks over the parts of the crawl.

There are up to three passes: fetch (only with fetch_urls), the census (which pictures are on many pages, or on both sides of the
split), and ingest itself. Each pass writes a file for every finished part, so a restarted job repeats none of them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa

from semantica.data.dataset import Manifest, ShardWriter, StageOutput
from semantica.data.durable import write_atomically
from semantica.data.location import Location, file_sha256, remove_tree
from semantica.data.schemas import EPISODES, HELD_OUT
from semantica.distributed.runtime import Runtime
from semantica.distributed.session import say
from semantica.distributed.stage import Pass, Stage, StageSession, run_stage
from semantica.episodes.census import Census, PageIds
from semantica.episodes.decoder import PictureDecoder, open_decoder
from semantica.episodes.fetch import FetchConfig, config_per_fetcher
from semantica.episodes.fetch.fetcher import Fetcher
from semantica.episodes.fetch.store import FetchedPictures, fetch_into, fetchable_urls, resolve
from semantica.episodes.images import ImageConfig
from semantica.episodes.ingest import IngestConfig, IngestedPage, count_pictures, ingest_pages, num_damaged, sample
from semantica.episodes.pages import Page, Part
from semantica.episodes.quarantine import DamagedFile, QuarantineRow, Reason, quarantine_table
from semantica.episodes.sources import SOURCES, label_sources
from semantica.errors import DataError
from semantica.tracking import Run

QUARANTINE_FOLDER = "quarantine"
_FETCHED, _CENSUS = "_fetched", "_census"
_PAGES_AT_ONCE, _BYTES_AT_ONCE = 16, 2**25  # the most that is turned into Arrow rows together


@dataclass(frozen=True)
class PartShard:
    """One shard of all three passes: a part of the crawl, and the name of its output."""

    name: str
    part: Part


def ingest(
    config: IngestConfig,
    *,
    root: Location,
    out: Location,
    runtime: Runtime,
    parent: Run | None = None,
    pictures: Sequence[tuple[str, str, str]] = (),
) -> Manifest:
    """Turn the crawl under `root` into episodes in `out`. Returns the manifest. Raises DataError when there is nothing to train on.

    pictures: (what, origin, licence), kept in the manifest and shown in every report.
    """
    parts = SOURCES[config.source].parts(root, config.read)

    def passes(session: StageSession) -> Iterator[Pass[PartShard, Any]]:
        shards = [PartShard(f"part-{index:05d}", part) for index, part in enumerate(parts)]
        done = session.out.shard_names()
        todo = [shard for shard in shards if shard.name not in done]
        crawl = (config, root, session.out)
        if todo and config.fetch_urls:
            if not config.fetch.contact:
                say(f"{'fetch':<9} --fetch.contact is empty; set an address at which the owners of servers can reach you")
            width = runtime.cluster.num_fetchers
            fetch = (*crawl, config_per_fetcher(config.fetch, width))
            yield Pass(worker=_FetchPart, arguments=fetch, shards=todo, name="fetch", unit="parts", width=width)
        digest = ""
        if todo and config.census_mb:
            path = session.out.folder / _CENSUS / "all.npz"
            if not path.exists():
                census = Census(config.census_mb)
                yield Pass(
                    worker=_CountPart, arguments=crawl, shards=shards, name="census", unit="parts",
                    each=lambda counted: census.add(PageIds.from_bytes(counted.read_bytes())),
                )  # fmt: skip
                _check_room(census, config, session)
                write_atomically(path, census.to_bytes())
            digest = file_sha256(path)
        yield Pass(worker=_IngestPart, arguments=(*crawl, digest), shards=todo, unit="parts")

    def finish(session: StageSession) -> Manifest:
        counts: Counter[str] = Counter()
        for _, stats in session.out.receipts():
            counts.update(stats)
        _check(counts, len(parts), root, session.out, config, runtime)
        session.summary = (
            f"{counts['num_train_images']} pictures of {counts['num_train_episodes']} pages, "
            f"{counts['num_held_out_images']} held out, {counts['num_quarantined']} of {counts['num_images_in']} quarantined"
        )
        session.notes += _notes(counts, config)
        for name in (_FETCHED, _CENSUS):  # read only by a restart that has parts left to do
            if (session.out.folder / name).exists():
                remove_tree(session.out.folder / name)
        return session.out.finish(counts, {"pictures": [list(p) for p in pictures]})

    output = StageOutput(out, "episodes", config, {"pages": _listing_hash(parts)})
    stage = Stage(name="ingest", out=output, passes=passes, finish=finish, ready=StageSession.start_ray)
    return run_stage(stage, runtime, parent)


def _check_room(census: Census, config: IngestConfig, session: StageSession) -> None:
    """Add a note when the census is too small for the pictures of the crawl."""
    if census.megabytes_wanted > census.megabytes:
        session.notes.append(
            f"census_mb = {config.census_mb} is small for {census.num_entries} pictures, so more than 1 in 100,000 of them may be "
            f"refused as furniture or in_training by error; {census.megabytes_wanted} would do"
        )


def _check(
    counts: Counter[str], num_parts: int, root: Location, stage: StageOutput, config: IngestConfig, runtime: Runtime
) -> None:
    """Raise DataError when no picture can be used, or when more pictures or parts are damaged than max_damaged_share allows."""
    reasons = ", ".join(f"{n} {name}" for name, n in _reasons(counts)) or "there are none"
    where = f"each has a row in {stage.folder / QUARANTINE_FOLDER}"
    usable = counts["num_train_images"] + (counts["num_held_out_images"] if config.held_out_share == 1 else 0)
    if not usable:
        what = "used" if config.held_out_share == 1 else "trained on"
        hints = "".join(f"; {note}" for note in _notes(counts, config))
        raise DataError(f"ingest: none of {counts['num_images_in']} pictures under {root} can be {what}: {reasons}; {where}{hints}")
    most = runtime.max_damaged_share
    for kind, damaged, total in (
        ("pictures and pages", num_damaged(counts), counts["num_images_in"]),
        ("parts of the crawl", counts["num_quarantined_damaged_file"], num_parts),
    ):
        if damaged > most * total:
            raise DataError(
                f"ingest: {damaged} of {total} {kind} under {root} are damaged, more than max_damaged_share = {most:g} allows "
                f"({reasons}); {where}; mend the crawl and delete the output, or pass a larger --max-damaged-share"
            )


def _notes(counts: Counter[str], config: IngestConfig) -> list[str]:
    """Notes for the user about a stage that succeeded."""
    notes = []
    if config.source in label_sources() and config.split_by == "page" and 0 < config.held_out_share < 1:
        notes.append("the pages of this source are classes, and whole classes are held out; --split-by image holds out pictures")
    if counts["num_pages_without_url"]:
        notes.append(
            f"{counts['num_pages_without_url']} of {counts['num_pages']} pictures came without the URL of their page, "
            "so each stands alone and gives no pair (img2dataset keeps it when told: --save_additional_columns '[\"page_url\"]')"
        )
    if counts["num_quarantined_not_in_archive"]:
        notes.append(f"{counts['num_quarantined_not_in_archive']} pictures of pages were not found in their archive")
    if counts["num_quarantined_remote_url"]:
        notes.append(f"{counts['num_quarantined_remote_url']} pictures are only named by URL; --fetch-urls gets them from the web")
    if config.fetch_urls and counts["num_quarantined_fetch_failed"] + counts["num_quarantined_fetch_timeout"]:
        notes.append("what could not be fetched is not asked for again in this output; another --out asks again")
    if counts["num_quarantined_damaged_file"]:
        notes.append(f"{counts['num_quarantined_damaged_file']} parts of the crawl are damaged and quarantined whole")
    if counts["num_train_images"] and config.held_out_share and not counts["num_held_out_images"]:
        notes.append(f"nothing is held out: there are too few pages for a share of {config.held_out_share:g}")
    return notes


def _reasons(counts: Counter[str]) -> list[tuple[str, int]]:
    prefix = "num_quarantined_"
    return [(name.removeprefix(prefix), n) for name, n in counts.most_common() if name.startswith(prefix)]


def _listing_hash(parts: Sequence[Part]) -> str:
    """A hash of the input: its parts and the sizes of their files. An edit that keeps a file's size is not noticed."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr((part.paths, part.start, part.stop, part.fingerprint)).encode(errors="surrogateescape"))
    return digest.hexdigest()


class _Part:
    """The base of the workers of all three passes: reads the pages of a part, with fetched pictures in their places."""

    def __init__(self, config: IngestConfig, root: Location, stage: StageOutput) -> None:
        self.config, self.root, self.stage = config, root, stage

    def source_pages(self, shard: PartShard) -> Iterator[Page]:
        """The pages as the source reads them."""
        return SOURCES[self.config.source].pages(self.root, shard.part, self.config.read)

    def pages(self, shard: PartShard) -> Iterator[Page]:
        """The pages, with the fetched pictures."""
        if not self.config.fetch_urls:
            yield from self.source_pages(shard)
            return
        fetched = FetchedPictures(self.stage.folder / _FETCHED, shard.name)
        for page in self.source_pages(shard):
            yield resolve(page, fetched, respect_opt_out=self.config.fetch.respect_opt_out)


@lru_cache(maxsize=1)
def _fetcher(config: FetchConfig) -> Fetcher:
    """One fetcher per worker process, so that robots.txt and the pace of a host are kept from one part to the next."""
    return Fetcher(config)


class _FetchPart(_Part):
    """Fetches the pictures that a part only names by URL, into a store in the output."""

    def __init__(self, config: IngestConfig, root: Location, stage: StageOutput, fetch: FetchConfig) -> None:
        super().__init__(config, root, stage)
        self.fetch = fetch

    def __call__(self, shard: PartShard) -> dict[str, int]:
        fetcher = _fetcher(self.fetch)
        return fetch_into(self.stage.folder / _FETCHED, shard.name, self._urls(shard), fetcher, self.fetch.batch_size)

    def _urls(self, shard: PartShard) -> Iterator[str]:
        try:
            for page in self.source_pages(shard):
                looked_at, _ = sample(page, self.config)
                yield from fetchable_urls(replace(page, images=tuple(looked_at)), respect_opt_out=self.fetch.respect_opt_out)
        except DamagedFile:  # the ingest pass will quarantine the part as a whole
            return


class _CountPart(_Part):
    """Counts the pictures on the pages of a part into a file, unless the file exists. Returns the file."""

    def __call__(self, shard: PartShard) -> Location:
        path = self.stage.folder / _CENSUS / f"{shard.name}.npz"
        if not path.exists():
            write_atomically(path, count_pictures(self.pages(shard), self.config).to_bytes())
        return path


@lru_cache(maxsize=1)
def _read_census(path: Location, digest: str) -> Census:
    """Read the census once per worker process, which ingests many parts. `digest` distinguishes it from an older census there."""
    return Census.from_bytes(path.read_bytes())


@lru_cache(maxsize=1)
def _decoder(settings: ImageConfig) -> PictureDecoder:
    """One decoder per worker process; its child process ends with the worker."""
    return open_decoder(settings)


class _IngestPart(_Part):
    """Writes the episodes and the quarantine of a part, row group by row group."""

    def __init__(self, config: IngestConfig, root: Location, stage: StageOutput, census: str) -> None:
        super().__init__(config, root, stage)
        self.census = census  # its SHA-256, or "" without one

    def __call__(self, shard: PartShard) -> None:
        census = _read_census(self.stage.folder / _CENSUS / "all.npz", self.census) if self.census else None
        decode = _decoder(self.config.image)
        try:
            self._write(shard, ingest_pages(self.pages(shard), census, self.config, decode))
        except DamagedFile as damaged:
            row = QuarantineRow(damaged.path, "", Reason.DAMAGED_FILE, damaged.detail)
            self._write(shard, iter([IngestedPage(0, None, None, [row])]))

    def _write(self, shard: PartShard, ingested: Iterator[IngestedPage]) -> None:
        counts: Counter[str] = Counter()
        waiting: list[IngestedPage] = []
        held_bytes = 0
        with self.stage.shard_writer(shard.name, self.config.rows_per_group) as writer:
            _flush(waiting, writer)  # so that a part without pages has all three files too
            for page in ingested:
                counts.update(page.counts())
                waiting.append(page)
                held_bytes += page.num_bytes
                if len(waiting) == _PAGES_AT_ONCE or held_bytes > _BYTES_AT_ONCE:
                    _flush(waiting, writer)
                    held_bytes = 0
            _flush(waiting, writer)
            writer.stats = dict(sorted(counts.items()))


def _flush(waiting: list[IngestedPage], writer: ShardWriter) -> None:
    """Write the rows of the waiting pages, and clear the list."""
    writer.write("", pa.Table.from_pylist([p.train for p in waiting if p.train], schema=EPISODES))
    writer.write(HELD_OUT, pa.Table.from_pylist([p.held_out for p in waiting if p.held_out], schema=EPISODES))
    writer.write(QUARANTINE_FOLDER, quarantine_table([row for p in waiting for row in p.refused]))
    waiting.clear()
