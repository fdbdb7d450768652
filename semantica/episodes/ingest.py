"""Pages -> episodes: reads, decodes, cleans and splits the pictures of some pages; the pure function behind the first stage.

Comes in: pages of a source and the set of furniture (from the census of all pages). Goes out: an EPISODES table for
training, one held out, and a QUARANTINE table. Pages do not influence each other, so any cut of a crawl into calls gives the
same rows. **Pictures in = training + held out + quarantined, always.**
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from semantica.config import config, require
from semantica.episodes import clean
from semantica.episodes.clean import NearDuplicates, count_pages, image_id, signature
from semantica.episodes.images import ImageConfig, normalise
from semantica.episodes.pages import ImageRef, Page
from semantica.episodes.quarantine import PAGE_REASONS, QuarantineRow, Reason, Refused, quarantine_table
from semantica.schemas import EPISODES


@config
class IngestConfig:
    """How pages become episodes."""

    source: Literal["folder", "html"] = "folder"
    image: ImageConfig = ImageConfig()
    drop_near_duplicates: bool = True
    near_duplicate_bits: int = 4  # of the 64 of a difference hash; both limits must hold
    near_duplicate_levels: int = 24  # of 255, in any channel of any cell of a 16x16 thumbnail
    max_furniture_pages: int = 10  # a picture on more pages than this AND than the share below is furniture
    max_furniture_page_share: float = 0.0
    held_out_share: float = 0.15  # 1: nothing to train on, all conditioning images (an evaluation set, a user's own pictures)
    split_by: Literal["image", "page"] = "page"
    min_images: int = 2  # of a training episode; fewer give no pair
    seed: int = 0
    pages_per_shard: int = 256
    rows_per_group: int = 64

    def __post_init__(self) -> None:
        require(0 <= self.near_duplicate_bits <= 64, "near_duplicate_bits", "in 0..64", self.near_duplicate_bits)
        require(0 <= self.near_duplicate_levels <= 255, "near_duplicate_levels", "in 0..255", self.near_duplicate_levels)
        require(self.max_furniture_pages >= 1, "max_furniture_pages", "at least 1", self.max_furniture_pages)
        require(0 <= self.max_furniture_page_share <= 1, "max_furniture_page_share", "in 0..1", self.max_furniture_page_share)
        require(0 <= self.held_out_share <= 1, "held_out_share", "in 0..1", self.held_out_share)
        require(self.min_images >= 1, "min_images", "at least 1", self.min_images)
        require(self.pages_per_shard >= 1, "pages_per_shard", "at least 1", self.pages_per_shard)
        require(self.rows_per_group >= 1, "rows_per_group", "at least 1", self.rows_per_group)


def is_held_out(page: Page, picture_id: str, config: IngestConfig, source_name: str) -> bool:
    """Which side a picture of a page is on: a pure function of the seed and the id of what is split, picture or page.

    By image, a picture is on one side wherever it stands, and a page may give an episode to each side.
    """
    name = picture_id if config.split_by == "image" else episode_id(source_name, page.page_url)
    digest = hashlib.sha256(f"{config.seed}\n{name}".encode()).digest()
    return int.from_bytes(digest[:8]) < config.held_out_share * 2**64


def episode_id(source_name: str, page_url: str) -> str:
    """The name of an episode: the first 32 hex digits of the SHA-256 of source and page URL."""
    return hashlib.sha256(f"{source_name}\n{page_url}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Census:
    """What must be known of all pages before any is ingested: on how many of each side every picture stands, by image_id.

    Censuses of disjoint sets of pages may be added, in any order.
    """

    num_pages: int
    train: Counter[str]
    held_out: Counter[str]

    def __add__(self, other: Census) -> Census:
        return Census(self.num_pages + other.num_pages, self.train + other.train, self.held_out + other.held_out)

    def furniture(self, config: IngestConfig) -> frozenset[str]:
        """The pictures that stand on too many pages."""
        return clean.furniture(
            self.train + self.held_out, self.num_pages, config.max_furniture_pages, config.max_furniture_page_share
        )

    def in_training(self) -> frozenset[str]:
        """The pictures of held-out pages that a training page shows too; none when the split is by image."""
        return frozenset(self.train.keys() & self.held_out.keys())


def take_census(pages: Sequence[Page], config: IngestConfig, source_name: str) -> Census:
    """The census of some pages. Reads every file once, decodes none."""
    sides: dict[bool, list[Page]] = {False: [], True: []}
    for page in pages:
        # By image a page has no side and nothing can be on both; all is counted as training.
        sides[config.split_by == "page" and is_held_out(page, "", config, source_name)].append(page)
    return Census(len(pages), count_pages(sides[False]), count_pages(sides[True]))


@dataclass(frozen=True)
class IngestResult:
    """What some pages became. `stats` are counts that may be added over calls.

    num_images_in = num_train_images + num_held_out_images + num_quarantined; num_quarantined counts pictures, and
    num_quarantined_REASON counts the rows of each reason that occurs, those of whole pages too.
    """

    train: pa.Table
    held_out: pa.Table
    quarantine: pa.Table
    stats: dict[str, int]


@dataclass(frozen=True)
class _Picture:
    """A picture that is accepted: a row of schemas.IMAGE."""

    image_id: str
    url: str
    data: bytes
    width: int
    height: int


def ingest_pages(
    pages: Sequence[Page],
    furniture: frozenset[str],
    config: IngestConfig,
    source_name: str,
    in_training: frozenset[str] = frozenset(),
) -> IngestResult:
    """The episodes of the pages, in their order, and a quarantine row for each picture and page that is in none.

    `furniture`: ids of pictures refused wherever they stand. `in_training`: ids refused on held-out pages because a training page
    shows them; without it, split_by="page" may leave one picture on both sides. Both come from the census of all pages. The
    pictures of one call should stay below 2 GB, Arrow's limit for one array.
    """
    train, held_out, refused = [], [], []
    for page in pages:
        accepted, rows = _read_page(page, furniture, config)
        refused += rows
        sides: dict[bool, list[_Picture]] = {False: [], True: []}
        for picture in accepted:
            sides[is_held_out(page, picture.image_id, config, source_name)].append(picture)
        known = [p for p in sides[True] if p.image_id in in_training]
        kept = [p for p in sides[True] if p.image_id not in in_training]
        refused += [
            QuarantineRow(page.page_url, p.url, Reason.IN_TRAINING, f"{p.image_id} is on a training page too") for p in known
        ]
        if kept:
            held_out.append(_episode(page, kept, source_name))
        if len(sides[False]) >= config.min_images:
            train.append(_episode(page, sides[False], source_name))
        else:
            detail = f"expected at least {config.min_images} for training, got {len(sides[False])}"
            refused += [QuarantineRow(page.page_url, p.url, Reason.TOO_FEW_IMAGES, detail) for p in sides[False]]
    stats = _stats(pages, train, held_out, refused)
    return IngestResult(
        pa.Table.from_pylist(train, schema=EPISODES),
        pa.Table.from_pylist(held_out, schema=EPISODES),
        quarantine_table(refused),
        stats,
    )


def _read_page(page: Page, furniture: frozenset[str], config: IngestConfig) -> tuple[list[_Picture], list[QuarantineRow]]:
    """The pictures of the page that are good and unlike each other, and a row for each other one."""
    if page.problem:
        return [], [QuarantineRow(page.page_url, "", Reason(page.problem), page.detail)]
    if not page.images:
        return [], [QuarantineRow(page.page_url, "", Reason.PAGE_WITHOUT_IMAGES, "the page shows no picture")]
    accepted: list[_Picture] = []
    refused: list[QuarantineRow] = []
    seen: dict[str, str] = {}
    similar = NearDuplicates(config.near_duplicate_bits, config.near_duplicate_levels)
    for image in page.images:
        try:
            accepted.append(_read_image(image, furniture, seen, similar, config))
        except Refused as refusal:
            refused.append(QuarantineRow(page.page_url, image.url, refusal.reason, refusal.detail))
    return accepted, refused


def _read_image(
    image: ImageRef, furniture: frozenset[str], seen: dict[str, str], similar: NearDuplicates, config: IngestConfig
) -> _Picture:
    """The picture, which is then in `seen` (id -> URL) and `similar`. Raises Refused."""
    data = read_file(image, config.image.max_bytes)
    name = image_id(data)
    if name in furniture:
        raise Refused(Reason.FURNITURE, f"{name} is on too many pages")
    if name in seen:
        raise Refused(Reason.DUPLICATE, f"the same bytes as {seen[name]}")
    seen[name] = image.url
    normal = normalise(data, config.image)
    if config.drop_near_duplicates:
        mark = signature(normal.pixels)
        original = similar.original_of(mark)
        if original is not None:
            raise Refused(Reason.NEAR_DUPLICATE, f"looks like {original}")
        similar.keep(image.url, mark)
    return _Picture(name, image.url, normal.data, normal.width, normal.height)


def read_file(image: ImageRef, max_bytes: int) -> bytes:
    """The bytes of the picture's file, which are at most max_bytes. Raises Refused."""
    if not image.path:
        raise Refused(Reason(image.problem), image.detail)
    try:
        with open(image.path, "rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise Refused(Reason.UNREADABLE_FILE, f"{type(error).__name__}: {error.strerror or error}") from None
    if len(data) > max_bytes:
        raise Refused(Reason.TOO_MANY_BYTES, f"expected at most {max_bytes} bytes, got more")
    return data


def _episode(page: Page, pictures: Sequence[_Picture], source_name: str) -> dict[str, Any]:
    """The row of EPISODES."""
    images = [{"image_id": p.image_id, "url": p.url, "bytes": p.data, "width": p.width, "height": p.height} for p in pictures]
    return {
        "episode_id": episode_id(source_name, page.page_url),
        "page_url": page.page_url,
        "source": source_name,
        "images": images,
    }


def _stats(
    pages: Sequence[Page], train: list[dict[str, Any]], held_out: list[dict[str, Any]], refused: list[QuarantineRow]
) -> dict[str, int]:
    """The counts of IngestResult. Raises AssertionError unless every picture that came in is in exactly one table."""
    stats = {
        "num_pages": len(pages),
        "num_images_in": sum(len(page.images) for page in pages),
        "num_train_episodes": len(train),
        "num_held_out_episodes": len(held_out),
        "num_train_images": sum(len(row["images"]) for row in train),
        "num_held_out_images": sum(len(row["images"]) for row in held_out),
        "num_quarantined": sum(row.reason not in PAGE_REASONS for row in refused),
    }
    assert stats["num_images_in"] == stats["num_train_images"] + stats["num_held_out_images"] + stats["num_quarantined"], stats
    by_reason = Counter(f"num_quarantined_{row.reason}" for row in refused)
    return stats | dict(sorted(by_reason.items()))
