"""Pictures of the report: grids as in the paper, contact sheets, and galleries with each sample beside its conditioning image.

In come uint8 arrays (H, W, 3) with words for them; out come PNGs with a transparent background and mid-grey labels, which read on
a light and on a dark page, and encoded pictures for a page: small ones pixel by pixel, larger ones as JPEG of one quality.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from semantica.errors import DataError
from semantica.report.written import Number, Protocol, Value, megabytes, plain, protocol_sentence

Picture = UInt8[np.ndarray, "_ _ 3"]

EXACT_PX = 64  # up to this side pictures stay as they were drawn, pixel by pixel, where all of them fit
MAX_PX, JPEG_QUALITY = 256, 85  # of a larger picture


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
class Encoded:
    """Pictures as a page holds them, in their order, and a sentence on what was done to them."""

    pictures: Sequence[Shown]
    note: str

    def feed(self) -> Iterator[Shown]:
        """The pictures one after the other."""
        return iter(self.pictures)


def encoded(pictures: Sequence[Picture]) -> Encoded:
    """The pictures for a page: as PNG where both sides are at most EXACT_PX, else as JPEG of at most MAX_PX."""
    shown = [_exact(picture) if max(picture.shape[:2]) <= EXACT_PX else _jpeg(picture) for picture in pictures]
    num_bytes = sum(len(picture.uri) for picture in shown)
    count = f"{len(shown)} picture{'' if len(shown) == 1 else 's'}, {megabytes(num_bytes)}"
    if all(picture.exact for picture in shown):
        return Encoded(shown, f"{count}, every pixel as it was drawn.")
    return Encoded(shown, f"{count}; those above {EXACT_PX} px as JPEG of quality {JPEG_QUALITY}, at most {MAX_PX} px.")


def png_shown(png: bytes) -> Shown:
    """A whole PNG for the page, as it is. Raises DataError when it is no PNG."""
    if not png.startswith(b"\x89PNG\r\n\x1a\n"):
        raise DataError(f"report: expected a grid as PNG, got {png[:8]!r}")
    picture = Image.open(io.BytesIO(png), formats=["PNG"])
    return Shown(_uri(png, "png"), picture.width, picture.height, False)


def _exact(picture: Picture) -> Shown:
    height, width = picture.shape[:2]
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return Shown(_uri(buffer.getvalue(), "png"), width, height, True)


def _jpeg(picture: Picture) -> Shown:
    image = Image.fromarray(picture)
    image.thumbnail((MAX_PX, MAX_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return Shown(_uri(buffer.getvalue(), "jpeg"), image.width, image.height, False)


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


MIN_CELL_PX = 96
_SPACE_PX = 3
_GAP_PX = 18  # between the condition and its samples
_FONT_PX = 14
_TEXT = (122, 122, 122, 255)  # contrast above 4:1 on white and on near-black
_EMPTY = (122, 122, 122, 40)


def grid_png(
    rows: Sequence[Sequence[Picture | None]],
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    *,
    scale: int | None = None,
    smooth: bool = False,
    gap_after_first: bool = True,
    mark_missing: bool = True,
) -> bytes:
    """A PNG of one line per row: the conditioning picture, a gap, then one sample per column; None leaves a pale square.

    Cells are as large as the first sample times `scale` (default: the smallest whole factor that reaches 96 px). Enlarging repeats
    pixels, which shows exactly what was drawn; `smooth` uses Lanczos instead, and so does any cell that does not divide evenly.
    Raises DataError when rows or labels differ in length, or there is no picture.
    """
    widths = sorted({len(row) for row in rows})
    pictures = [picture for row in rows for picture in row[1:] if picture is not None] or [
        p for row in rows for p in row if p is not None
    ]
    if len(widths) != 1 or not pictures:
        raise DataError(f"grid: expected rows of one length with a picture, got lengths {widths} and {len(pictures)} pictures")
    for name, labels, expected in (("column_labels", column_labels, widths[0]), ("row_labels", row_labels, len(rows))):
        if labels and len(labels) != expected:
            raise DataError(f"grid: expected {expected} {name} or none, got {len(labels)}")
    height, width = pictures[0].shape[:2]
    factor = scale or max(1, -(-MIN_CELL_PX // max(height, width)))
    cell = (width * factor, height * factor)

    font = ImageFont.load_default(size=_FONT_PX)
    left = max((int(font.getlength(label)) + 8 for label in row_labels), default=0)
    top = _FONT_PX + 8 if column_labels else 0
    gap = _GAP_PX if gap_after_first and widths[0] > 1 else 0
    steps = [left + column * (cell[0] + _SPACE_PX) + (gap if column else 0) for column in range(widths[0])]
    size = (steps[-1] + cell[0], top + len(rows) * (cell[1] + _SPACE_PX) - _SPACE_PX)
    canvas = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    for x, label in zip(steps, column_labels, strict=False):
        draw.text((x + cell[0] / 2, top - 5), _fitted(label, font, cell[0]), font=font, fill=_TEXT, anchor="ms")
    for index, row in enumerate(rows):
        y = top + index * (cell[1] + _SPACE_PX)
        if row_labels:
            draw.text((left - 8, y + cell[1] / 2), row_labels[index], font=font, fill=_TEXT, anchor="rm")
        for x, picture in zip(steps, row, strict=True):
            if picture is None and mark_missing:
                draw.rectangle((x, y, x + cell[0] - 1, y + cell[1] - 1), fill=_EMPTY)
            elif picture is not None:
                canvas.paste(_enlarged(picture, cell, smooth), (x, y))
    return _png(canvas)


def sheet_png(images: Sequence[Picture], columns: int = 8, *, scale: int | None = None, smooth: bool = False) -> bytes:
    """A PNG contact sheet of the pictures, row by row. Raises DataError when there is none."""
    if not images or columns < 1:
        raise DataError(f"sheet: expected at least 1 picture and 1 column, got {len(images)} pictures and {columns} columns")
    columns = min(columns, len(images))
    padded: list[Picture | None] = [*images, *[None] * (-len(images) % columns)]
    rows = [padded[start : start + columns] for start in range(0, len(padded), columns)]
    return grid_png(rows, scale=scale, smooth=smooth, gap_after_first=False, mark_missing=False)


def _enlarged(picture: Picture, cell: tuple[int, int], smooth: bool) -> Image.Image:
    height, width = picture.shape[:2]
    whole = cell[0] % width == 0 and cell[1] % height == 0
    return Image.fromarray(picture).resize(cell, Image.Resampling.NEAREST if whole and not smooth else Image.Resampling.LANCZOS)


def _fitted(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while len(label) > 1 and font.getlength(label) > width:
        label = label.removesuffix("…")[:-1] + "…"
    return label


def _png(canvas: Image.Image) -> bytes:
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def samples_grid(
    conditions: Sequence[Picture],
    samples: Sequence[Sequence[Picture | None]],
    *,
    guidance: Number,
    row_labels: Sequence[str] = (),
    protocol: str | Protocol = "",
    title: str = "Samples",
) -> Grid:
    """Fig. 1: one row per conditioning image: left the image, right its samples at one w."""
    _check(title, conditions, samples, row_labels)
    width = len(samples[0])
    return _grid(
        title,
        conditions,
        samples,
        [f"sample {index}" for index in range(1, width + 1)],
        row_labels,
        protocol,
        alt=f"{len(conditions)} rows: a conditioning image, then {width} samples at guidance w = {guidance:g}",
        caption=f"Left: a conditioning image. Right: {width} samples at w = {guidance:g} (the paper, Fig. 1).",
    )


def guidance_grid(
    conditions: Sequence[Picture],
    samples: Sequence[Sequence[Picture | None]],
    *,
    weights: Sequence[Number],
    row_labels: Sequence[str] = (),
    protocol: str | Protocol = "",
    title: str = "Samples against guidance",
) -> Grid:
    """Fig. 4 and 5: one row per conditioning image: left the image, right one sample at each w, all from the same noise."""
    _check(title, conditions, samples, row_labels)
    return _grid(
        title,
        conditions,
        samples,
        [f"w = {w:g}" for w in weights],
        row_labels,
        protocol,
        alt=f"{len(conditions)} rows: a conditioning image, then one sample at each of {len(weights)} guidance weights",
        caption="Left: a conditioning image. Right: one sample at each w, from the same noise (the paper, Fig. 4 and 5).",
    )


def _grid(
    title: str,
    conditions: Sequence[Picture],
    samples: Sequence[Sequence[Picture | None]],
    columns: Sequence[str],
    row_labels: Sequence[str],
    protocol: str | Protocol,
    *,
    alt: str,
    caption: str,
) -> Grid:
    rows = [[condition, *drawn] for condition, drawn in zip(conditions, samples, strict=True)]
    labels = ["condition", *columns]
    return Grid(
        title=title,
        png=grid_png(rows, labels, row_labels),
        alt=alt,
        caption=caption,
        protocol=protocol,
        rows=rows,
        column_labels=labels,
        row_labels=row_labels,
    )


def _check(
    title: str, conditions: Sequence[Picture], samples: Sequence[Sequence[Picture | None]], row_labels: Sequence[str]
) -> None:
    if not conditions or len(samples) != len(conditions) or (row_labels and len(row_labels) != len(conditions)):
        raise DataError(
            f"grid {title!r}: expected conditioning images, as many rows of samples and as many labels or none, "
            f"got {len(conditions)}, {len(samples)} and {len(row_labels)}"
        )
