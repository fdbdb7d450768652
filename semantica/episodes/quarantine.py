"""Why a page or a picture is not in an episode: the reason codes, the exception that carries one, and the quarantine table.

Every other module of `episodes/` refuses with a `Reason`; `ingest` turns each refusal into one row here, so that accepted +
quarantined = input. Nothing is dropped without a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

import pyarrow as pa

from semantica.schemas import QUARANTINE

MAX_TEXT = 500  # characters of a URL or a detail that a row keeps; a data: URL may have millions


class Reason(StrEnum):
    """The code in the column `reason` of QUARANTINE."""

    # A page (the row's url is "").
    PAGE_WITHOUT_IMAGES = "page_without_images"
    PAGE_UNREADABLE = "page_unreadable"
    # A reference that leads to no file of the tree.
    REMOTE_URL = "remote_url"
    DATA_URL = "data_url"
    BAD_URL = "bad_url"
    OUTSIDE_ROOT = "outside_root"
    MISSING_FILE = "missing_file"
    # A file that is no picture we can use.
    UNREADABLE_FILE = "unreadable_file"
    EMPTY_FILE = "empty_file"
    TOO_MANY_BYTES = "too_many_bytes"
    NOT_AN_IMAGE = "not_an_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    EXTREME_ASPECT = "extreme_aspect"
    TOO_SMALL = "too_small"
    UNDECODABLE = "undecodable"
    BLANK = "blank"
    # A good picture in the wrong place.
    FURNITURE = "furniture"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    IN_TRAINING = "in_training"
    TOO_FEW_IMAGES = "too_few_images"


PAGE_REASONS = frozenset({Reason.PAGE_WITHOUT_IMAGES, Reason.PAGE_UNREADABLE})  # of rows that stand for a page, not a picture


class Refused(Exception):
    """A picture that is not used, and why. Never leaves `episodes/`: `ingest` makes a row of it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that the exception survives pickling
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class QuarantineRow:
    """One row of QUARANTINE; `url` is "" when the page itself is refused."""

    page_url: str
    url: str
    reason: Reason
    detail: str


def quarantine_table(rows: Sequence[QuarantineRow]) -> pa.Table:
    """QUARANTINE rows, long texts cut to MAX_TEXT characters."""
    return pa.Table.from_pylist([{name: shown(text) for name, text in asdict(row).items()} for row in rows], schema=QUARANTINE)


def shown(text: str) -> str:
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
