"""Pictures of pictures: the grid of the paper's figure 4 (condition | one column per guidance w) and the plain contact sheet.

In come uint8 arrays (H, W, 3), out goes a PNG. Its background is transparent and its labels are mid-grey, so that one file reads on
a light and on a dark page.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from semantica.errors import DataError

Picture = UInt8[np.ndarray, "_ _ 3"]

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
