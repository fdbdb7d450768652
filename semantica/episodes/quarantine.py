"""Why a page or a picture is not in an episode: the reason codes, the exceptions that carry them, and the quarantine table.

Every other module of `episodes/` refuses with a `Reason`. `ingest` turns each refusal into one row of the table, so that accepted +
quarantined = input. Nothing is dropped without a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

import pyarrow as pa

from semantica.data.schemas import QUARANTINE

MAX_TEXT = 500  # a row keeps this many characters of a URL or a detail; a data: URL may have millions


class Reason(StrEnum):
    """The code in the column `reason` of QUARANTINE."""

    # A page (the row's url is "").
    PAGE_WITHOUT_IMAGES = "page_without_images"
    PAGE_UNREADABLE = "page_unreadable"
    DAMAGED_FILE = "damaged_file"  # a file of the crawl, with all its pages, that is truncated or of another format
    # A reference that leads to no file of the tree.
    REMOTE_URL = "remote_url"
    DATA_URL = "data_url"
    BAD_URL = "bad_url"
    OUTSIDE_ROOT = "outside_root"
    MISSING_FILE = "missing_file"
    NOT_IN_ARCHIVE = "not_in_archive"
    # A URL that the fetcher could not, or must not, fetch.
    ADDRESS_BLOCKED = "address_blocked"
    ROBOTS = "robots"
    OPTED_OUT = "opted_out"
    FETCH_STATUS = "fetch_status"
    FETCH_TIMEOUT = "fetch_timeout"
    FETCH_FAILED = "fetch_failed"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    # A file that is not a usable picture.
    UNREADABLE_FILE = "unreadable_file"
    EMPTY_FILE = "empty_file"
    TOO_MANY_BYTES = "too_many_bytes"
    NOT_AN_IMAGE = "not_an_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    EXTREME_ASPECT = "extreme_aspect"
    TOO_SMALL = "too_small"
    UNDECODABLE = "undecodable"
    DECODER_DIED = "decoder_died"
    DECODER_TIMEOUT = "decoder_timeout"
    DECODER_MEMORY = "decoder_memory"
    BLANK = "blank"
    # A sound picture that its page or the split does not use.
    FURNITURE = "furniture"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    IN_TRAINING = "in_training"
    PAGE_CAP = "page_cap"
    TOO_FEW_IMAGES = "too_few_images"


# The reasons of rows that stand for a page or a file of pages, not for a picture.
PAGE_REASONS = frozenset({Reason.PAGE_WITHOUT_IMAGES, Reason.PAGE_UNREADABLE, Reason.DAMAGED_FILE})

# The reasons that mean a damaged file, unlike pictures that are sound but unwanted, or have no file. Many of these mean a damaged
# crawl.
DAMAGE = frozenset(
    {
        Reason.PAGE_UNREADABLE,
        Reason.DAMAGED_FILE,
        Reason.UNREADABLE_FILE,
        Reason.EMPTY_FILE,
        Reason.NOT_AN_IMAGE,
        Reason.UNDECODABLE,
        Reason.DECODER_DIED,
        Reason.DECODER_TIMEOUT,
        Reason.DECODER_MEMORY,
    }
)


class Refused(Exception):
    """A picture that is not used, and why. Never leaves `episodes/`: `ingest` turns it into a row."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that the exception survives pickling
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class DamagedFile(Exception):
    """A file of a crawl that is truncated, or not of its source's format. Sources raise it; `ingest` turns it into a row."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(path, detail)
        self.path = path
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"


@dataclass(frozen=True)
class QuarantineRow:
    """One row of QUARANTINE; `url` is "" when the page itself is refused."""

    page_url: str
    url: str
    reason: Reason
    detail: str


def quarantine_table(rows: Sequence[QuarantineRow]) -> pa.Table:
    """QUARANTINE rows, long texts cut to MAX_TEXT characters."""
    return pa.Table.from_pylist([{name: short_text(text) for name, text in asdict(row).items()} for row in rows], schema=QUARANTINE)


def short_text(text: str) -> str:
    """The text as Arrow can store it (UTF-8), cut to MAX_TEXT characters.

    Names of files need not be UTF-8; Python keeps their odd bytes as lone surrogates, shown here as \\xNN.
    """
    text = utf8(text)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def utf8(text: str) -> str:
    """The text with every lone surrogate as \\xNN (an undecodable byte of a file name) or \\uNNNN, so that it encodes as UTF-8."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    return raw.decode("utf-8", "backslashreplace")
