"""Pages -> episodes: reads, decodes, cleans and splits the pictures of pages; the pure function behind the first stage.

In: the pages of a source, one at a time, and the census of all pages. Out, page by page: at most one training episode, at most one
held-out episode, and a quarantine row for everything else. Memory holds one page. Pages do not influence each other, so any
division of a crawl into calls gives the same rows. **Pictures in = training + held out + quarantined, always.**

A page with more than `max_images_per_page` pictures is usually a listing, and its pairs grow with the square of its pictures. A
sample of `max_images_per_page` references is kept, in the order of the page: those with the smallest SHA-256 of seed, page and URL.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from semantica.config import config, require
from semantica.data.location import is_local, location, read_range
from semantica.episodes.census import Census, PageIds
from semantica.episodes.clean import NearDuplicates, image_id, signature
from semantica.episodes.fetch import FetchConfig
from semantica.episodes.images import ImageConfig, NormalisedImage
from semantica.episodes.pages import ImageRef, Page, ReadConfig
from semantica.episodes.quarantine import DAMAGE, PAGE_REASONS, DamagedFile, QuarantineRow, Reason, Refused

Decode: TypeAlias = Callable[[bytes], NormalisedImage]  # raises Refused

# A page with one of these directives is never used for training, in any source. The fetcher obeys more of them (noindex, none).
_NO_TRAINING = frozenset({"noai", "noimageai"})


@config
class IngestConfig:
    """How pages become episodes."""

    source: str = "folder"  # the format of the crawl: a name registered in `episodes.sources`
    read: ReadConfig = ReadConfig()
    fetch_urls: bool = False  # fetch pictures from the web when the crawl holds their URL only
    fetch: FetchConfig = FetchConfig()
    image: ImageConfig = ImageConfig()
    max_images_per_page: int = 512
    drop_near_duplicates: bool = True
    near_duplicate_bits: int = 4  # of the 64 of a difference hash; near-duplicates are within both limits
    near_duplicate_levels: int = 24  # of 255, in any channel of any cell of a 16x16 thumbnail
    max_furniture_pages: int = 10  # furniture: a picture on more pages than this AND than the share below
    max_furniture_page_share: float = 0.0
    census_mb: int = 64  # memory of the census on driver and workers, 16 bytes per picture; 0: no census, one pass less
    held_out_share: float = 0.15  # 1: no training pictures, only conditioning images (an evaluation set, own pictures)
    split_by: Literal["image", "page"] = "page"
    min_images: int = 2  # per training episode; one picture gives no pair
    seed: int = 0
    rows_per_group: int = 64

    def __post_init__(self) -> None:
        from semantica.episodes.sources import SOURCES  # late: the sources import modules that are imported here

        SOURCES.check(self.source)
        require(0 <= self.near_duplicate_bits <= 64, "near_duplicate_bits", "in 0..64", self.near_duplicate_bits)
        require(0 <= self.near_duplicate_levels <= 255, "near_duplicate_levels", "in 0..255", self.near_duplicate_levels)
        require(self.max_images_per_page >= 1, "max_images_per_page", "at least 1", self.max_images_per_page)
        require(self.max_furniture_pages >= 1, "max_furniture_pages", "at least 1", self.max_furniture_pages)
        require(0 <= self.max_furniture_page_share <= 1, "max_furniture_page_share", "in 0..1", self.max_furniture_page_share)
        require(0 <= self.census_mb <= 2**20, "census_mb", "in 0..1048576", self.census_mb)
        require(0 <= self.held_out_share <= 1, "held_out_share", "in 0..1", self.held_out_share)
        require(self.min_images >= 1, "min_images", "at least 1", self.min_images)
        require(self.rows_per_group >= 1, "rows_per_group", "at least 1", self.rows_per_group)


def is_held_out(page: Page, picture_id: str, config: IngestConfig) -> bool:
    """Whether a picture of a page is held out: a pure function of the seed and the id of the picture or page (`split_by`).

    By image, a picture is on the same side on all pages, and a page may have an episode on each side. By page, all pieces of a
    page_url are on one side.
    """
    name = picture_id if config.split_by == "image" else episode_id(config.source, page.page_url)
    digest = hashlib.sha256(f"{config.seed}\n{name}".encode()).digest()
    return int.from_bytes(digest[:8]) < config.held_out_share * 2**64


def episode_id(source_name: str, page_url: str, piece: str = "") -> str:
    """The name of an episode: the first 32 hex digits of the SHA-256 of source, page URL and, if any, piece."""
    text = f"{source_name}\n{page_url}\n{piece}" if piece else f"{source_name}\n{page_url}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def count_pictures(pages: Iterable[Page], config: IngestConfig) -> PageIds:
    """The input of the census: the pictures of some pages and the side of each page. Reads every file once, decodes none.

    A file that cannot be read is not counted here: `ingest_pages` reads it again and writes its row.
    """
    try:
        return PageIds.of(_picture_ids(pages, config))
    except DamagedFile:  # `ingest_pages` refuses the whole part, so none of its pages counts
        return PageIds.of([])


def _picture_ids(pages: Iterable[Page], config: IngestConfig) -> Iterator[tuple[bool, list[str]]]:
    for page in pages:
        references, _ = sample(page, config)
        # By image, a page has no side and no picture can be on both sides: all pages count as training.
        held_out = config.split_by == "page" and is_held_out(page, "", config)
        yield held_out, [name for name in (_file_id(image, config.image.max_bytes) for image in references) if name]


def _file_id(image: ImageRef, max_bytes: int) -> str:
    try:
        return image_id(read_image(image, max_bytes))
    except Refused:
        return ""


@dataclass(frozen=True)
class IngestedPage:
    """The result for one page: a row of EPISODES or None per side, and a quarantine row per refused picture or refused page."""

    num_images_in: int
    train: dict[str, Any] | None
    held_out: dict[str, Any] | None
    refused: list[QuarantineRow]
    has_url: bool = True

    @property
    def num_bytes(self) -> int:
        """Bytes of the pictures in the episodes."""
        return sum(len(image["bytes"]) for row in (self.train, self.held_out) if row for image in row["images"])

    def counts(self) -> Counter[str]:
        """Counts that may be summed over pages. Raises AssertionError unless every input picture is in exactly one place.

        num_images_in = num_train_images + num_held_out_images + num_quarantined. num_quarantined counts pictures;
        num_quarantined_REASON counts the rows of each reason that occurs, including rows of whole pages.
        """
        train = len(self.train["images"]) if self.train else 0
        held_out = len(self.held_out["images"]) if self.held_out else 0
        quarantined = sum(row.reason not in PAGE_REASONS for row in self.refused)
        assert self.num_images_in == train + held_out + quarantined, (self.num_images_in, train, held_out, quarantined)
        counts = Counter(
            num_pages=1,
            num_pages_without_url=int(not self.has_url),
            num_images_in=self.num_images_in,
            num_train_episodes=int(train > 0),
            num_held_out_episodes=int(held_out > 0),
            num_train_images=train,
            num_held_out_images=held_out,
            num_quarantined=quarantined,
        )
        counts.update(f"num_quarantined_{row.reason}" for row in self.refused)
        return counts


def num_damaged(counts: Counter[str]) -> int:
    """The number of pictures, pages and files that were refused as damaged, not as unwanted."""
    return sum(counts[f"num_quarantined_{reason}"] for reason in DAMAGE)


@dataclass(frozen=True)
class _Picture:
    """An accepted picture: a row of schemas.IMAGE."""

    image_id: str
    url: str
    data: bytes
    width: int
    height: int

    def row(self) -> dict[str, Any]:
        """The row of IMAGE."""
        return {"image_id": self.image_id, "url": self.url, "bytes": self.data, "width": self.width, "height": self.height}


def ingest_pages(pages: Iterable[Page], census: Census | None, config: IngestConfig, decode: Decode) -> Iterator[IngestedPage]:
    """The result for each page, in order. `census` covers all pages of the crawl, not only these; without it, nothing is furniture.

    A picture of a held-out page that is also on a training page is refused as in_training, so that no picture is on both sides.
    Raises DamagedFile when the source does.
    """
    limit = max(config.max_furniture_pages, config.max_furniture_page_share * census.num_pages) if census else 0
    for page in pages:
        accepted, refused = _read_page(page, census, limit, config, decode)
        sides: dict[bool, list[_Picture]] = {False: [], True: []}
        for picture in accepted:
            held_out = is_held_out(page, picture.image_id, config)
            if held_out and census and config.split_by == "page" and census.in_training(picture.image_id):
                detail = f"{picture.image_id} is on a training page too"
                refused.append(QuarantineRow(page.page_url, picture.url, Reason.IN_TRAINING, detail))
            else:
                sides[held_out].append(picture)
        if 0 < len(sides[False]) < config.min_images:
            detail = f"expected at least {config.min_images} for training, got {len(sides[False])}"
            refused += [QuarantineRow(page.page_url, p.url, Reason.TOO_FEW_IMAGES, detail) for p in sides[False]]
            sides[False] = []
        train, held_out_row = (_episode(page, sides[side], config.source) for side in (False, True))
        yield IngestedPage(len(page.images), train, held_out_row, refused, page.has_url)


def _read_page(
    page: Page, census: Census | None, limit: float | int, config: IngestConfig, decode: Decode
) -> tuple[list[_Picture], list[QuarantineRow]]:
    """The accepted pictures of the page, and a quarantine row for each of the others."""
    if page.problem:
        return [], [QuarantineRow(page.page_url, "", Reason(page.problem), page.detail)]
    if not page.images:
        return [], [QuarantineRow(page.page_url, "", Reason.PAGE_WITHOUT_IMAGES, "the page shows no picture")]
    references, over = sample(page, config)
    detail = f"the page has {len(page.images)} pictures, a sample of {config.max_images_per_page} is kept"
    refused = [QuarantineRow(page.page_url, image.url, Reason.PAGE_CAP, detail) for image in over]
    if directives := _NO_TRAINING.intersection(page.opt_out):
        detail = f"the page says {', '.join(sorted(directives))}"
        return [], refused + [QuarantineRow(page.page_url, image.url, Reason.OPTED_OUT, detail) for image in references]
    accepted: list[_Picture] = []
    seen: dict[str, str] = {}
    similar = NearDuplicates(config.near_duplicate_bits, config.near_duplicate_levels)
    for image in references:
        try:
            accepted.append(_accept(image, census, limit, seen, similar, config, decode))
        except Refused as refusal:
            refused.append(QuarantineRow(page.page_url, image.url, refusal.reason, refusal.detail))
    return accepted, refused


def sample(page: Page, config: IngestConfig) -> tuple[list[ImageRef], list[ImageRef]]:
    """(the references that are used, the references over the page's cap), both in the order of the page."""
    if len(page.images) <= config.max_images_per_page:
        return list(page.images), []
    key = f"{config.seed}\n{page.page_url}\n"
    order = sorted(range(len(page.images)), key=lambda i: hashlib.sha256((key + page.images[i].url).encode()).digest())
    chosen = set(order[: config.max_images_per_page])
    split: tuple[list[ImageRef], list[ImageRef]] = ([], [])
    for index, image in enumerate(page.images):
        split[index not in chosen].append(image)
    return split


def _accept(
    image: ImageRef,
    census: Census | None,
    limit: float | int,
    seen: dict[str, str],
    similar: NearDuplicates,
    config: IngestConfig,
    decode: Decode,
) -> _Picture:
    """The picture as it is stored; also added to `seen` (id -> URL) and `similar`. Raises Refused."""
    data = read_image(image, config.image.max_bytes)
    name = image_id(data)
    if census and census.is_furniture(name, limit):
        raise Refused(Reason.FURNITURE, f"{name} is on too many pages")
    if name in seen:
        raise Refused(Reason.DUPLICATE, f"the same bytes as {seen[name]}")
    seen[name] = image.url
    normal = decode(data)
    if config.drop_near_duplicates:
        mark = signature(normal.pixels)
        original = similar.original_of(mark)
        if original is not None:
            raise Refused(Reason.NEAR_DUPLICATE, f"looks like {original}")
        similar.keep(image.url, mark)
    return _Picture(name, image.url, normal.data, normal.width, normal.height)


def read_image(image: ImageRef, max_bytes: int) -> bytes:
    """The bytes of the picture, at most max_bytes. Raises Refused."""
    if image.problem:
        raise Refused(Reason(image.problem), image.detail)
    if image.data is not None:
        data = image.data
    else:
        path = location(image.path)
        try:
            data = read_range(path, image.offset, min(image.length or max_bytes + 1, max_bytes + 1))
        except OSError as error:
            if not is_local(path) and not isinstance(error, (FileNotFoundError, PermissionError)):
                raise  # a failure of the network, not of the picture: the part is read again
            raise Refused(Reason.UNREADABLE_FILE, f"{type(error).__name__}: {error.strerror or error}") from None
    if len(data) > max_bytes:
        raise Refused(Reason.TOO_MANY_BYTES, f"expected at most {max_bytes} bytes, got more")
    return data


def _episode(page: Page, pictures: Sequence[_Picture], source_name: str) -> dict[str, Any] | None:
    """The row of EPISODES, or None without a picture."""
    if not pictures:
        return None
    return {
        "episode_id": episode_id(source_name, page.page_url, page.piece),
        "page_url": page.page_url,
        "source": source_name,
        "images": [picture.row() for picture in pictures],
    }
