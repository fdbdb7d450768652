"""Pictures of the report, each sample beside the conditioning image that it was drawn for: grids as in the paper, and a gallery.

In come uint8 arrays (H, W, 3) with words for them; out come encoded pictures that a page can hold: small ones exactly as they were
drawn where they fit, others as WebP, as large as a budget of bytes allows. What was done to them is said in words.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from semantica.errors import DataError
from semantica.report.protocol import Protocol, protocol_sentence
from semantica.report.written import Value, megabytes, plain

Picture = UInt8[np.ndarray, "_ _ 3"]

EXACT_PX = 64  # up to this side pictures stay as they were drawn, pixel by pixel, where all of them fit
# Tried in turn until the pictures fit their share of the page: longest side in px, WebP quality, up to which side they stay exact.
_RUNGS = (
    (256, 90, EXACT_PX), (256, 75, EXACT_PX), (192, 75, EXACT_PX), (128, 75, EXACT_PX), (96, 70, EXACT_PX), (64, 60, EXACT_PX),
    (64, 90, 0), (64, 60, 0), (64, 30, 0), (32, 30, 0),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows of pictures, the conditioning image first.

    `png` is the whole as one picture, for wherever there is no page. With `rows` (None: no sample) the page shows a table whose
    labels are text; without, the PNG. `alt` says what it shows in words.
    """

    title: str
    png: bytes = field(repr=False)
    alt: str
    caption: str = ""
    protocol: str | Protocol = ""
    rows: Sequence[Sequence[Picture | None]] = field(default=(), repr=False)
    column_labels: Sequence[str] = ()
    row_labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        widths = sorted({len(row) for row in self.rows})
        if len(widths) > 1:
            raise DataError(f"grid {self.title!r}: expected rows of one length, got lengths {widths}")
        for name, labels, expected in (
            ("column_labels", self.column_labels, widths),
            ("row_labels", self.row_labels, [len(self.rows)]),
        ):
            if self.rows and labels and [len(labels)] != expected:
                raise DataError(f"grid {self.title!r}: expected {expected[0]} {name} or none, got {len(labels)}")

    def pictures(self) -> list[Picture]:
        """Every picture of the rows, in reading order."""
        return [picture for row in self.rows for picture in row if picture is not None]

    def to_json(self) -> dict[str, Any]:
        """The words around the pictures, for report.json."""
        words = {"title": self.title, "caption": self.caption, "alt": self.alt, "protocol": protocol_sentence(self.protocol)}
        return {**words, "columns": list(self.column_labels), "rows": list(self.row_labels)}


@dataclass(frozen=True, kw_only=True)
class Example:
    """One conditioning image, the samples drawn for it, and what is known of them (`notes`: "own similarity" -> 0.41)."""

    condition: Picture = field(repr=False)
    samples: Sequence[Picture] = field(repr=False)
    label: str = ""
    condition_alt: str = "conditioning image"
    sample_labels: Sequence[str] = ()
    notes: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.samples or (self.sample_labels and len(self.sample_labels) != len(self.samples)):
            raise DataError(
                f"gallery: expected at least one sample of {self.label!r} and a label for each or for none, "
                f"got {len(self.samples)} samples and {len(self.sample_labels)} labels"
            )


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Examples that a reader looks through one by one, with the condition beside each sample."""

    title: str
    examples: Sequence[Example]
    caption: str = ""
    protocol: str | Protocol = ""

    def __post_init__(self) -> None:
        if not self.examples:
            raise DataError(f"gallery {self.title!r}: expected at least one example, got none")

    def pictures(self) -> list[Picture]:
        """Every picture, each condition before its samples."""
        return [picture for example in self.examples for picture in (example.condition, *example.samples)]

    def to_json(self) -> dict[str, Any]:
        """The words and numbers around the pictures, for report.json."""
        examples = [{"label": e.label, "samples": list(e.sample_labels), "notes": plain(e.notes)} for e in self.examples]
        words = {"title": self.title, "caption": self.caption, "protocol": protocol_sentence(self.protocol)}
        return {**words, "examples": examples}


@dataclass(frozen=True)
class Shown:
    """One picture as a page holds it: its data URI, its size, and whether enlarging it should repeat pixels."""

    uri: str
    width: int
    height: int
    exact: bool


@dataclass(frozen=True)
class Fitted:
    """Pictures that fit a budget, in their order, and a sentence on what was done to them."""

    pictures: Sequence[Shown]
    note: str

    def feed(self) -> Iterator[Shown]:
        """The pictures one after the other."""
        return iter(self.pictures)


def fitted(pictures: Sequence[Picture], max_bytes: int) -> Fitted:
    """The pictures encoded for a page, together at most `max_bytes` as data URIs. Raises DataError when none of the sizes fits."""
    exact = [_exact(picture) if max(picture.shape[:2]) <= EXACT_PX else None for picture in pictures]
    for side, quality, exact_px in _RUNGS:
        shown = [(e if exact_px else None) or _webp_shown(p, side, quality) for p, e in zip(pictures, exact, strict=True)]
        num_bytes = sum(len(picture.uri) for picture in shown)
        if num_bytes <= max_bytes:
            count = f"{len(shown)} picture{'' if len(shown) == 1 else 's'}, {megabytes(num_bytes)}"
            if all(picture.exact for picture in shown):
                return Fitted(shown, f"{count}, every pixel as it was drawn.")
            which = f"those above {exact_px} px" if exact_px else "all"
            return Fitted(shown, f"{count}; {which} as WebP of quality {quality}, at most {side} px.")
    raise DataError(
        f"report: expected pictures that fit {megabytes(max_bytes)} of the page, got {len(pictures)} with {megabytes(num_bytes)} "
        f"even at {_RUNGS[-1][0]} px; show fewer examples"
    )


def png_shown(png: bytes, max_bytes: int) -> Shown:
    """A whole PNG for the page: as it is where it fits, else as WebP. Raises DataError when it is no PNG or never fits."""
    if not png.startswith(b"\x89PNG\r\n\x1a\n"):
        raise DataError(f"report: expected a grid as PNG, got {png[:8]!r}")
    picture = Image.open(io.BytesIO(png), formats=["PNG"])
    data, kind = png, "png"
    for quality in (90, 75, 50, 25, None):
        if len(uri := _uri(data, kind)) <= max_bytes:
            return Shown(uri, picture.width, picture.height, False)
        if quality is not None:
            data, kind = _webp(picture, quality), "webp"
    raise DataError(
        f"report: expected a grid of at most {megabytes(max_bytes)}, got {megabytes(len(png))} ({picture.width} x "
        f"{picture.height} px); show fewer rows"
    )


def _exact(picture: Picture) -> Shown:
    height, width = picture.shape[:2]
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return Shown(_uri(buffer.getvalue(), "png"), width, height, True)


def _webp_shown(picture: Picture, side: int, quality: int) -> Shown:
    height, width = picture.shape[:2]
    longest = max(height, width)
    image = Image.fromarray(picture)
    if longest > side:
        size = (max(1, round(width * side / longest)), max(1, round(height * side / longest)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return Shown(_uri(_webp(image, quality), "webp"), image.width, image.height, False)


def _webp(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
