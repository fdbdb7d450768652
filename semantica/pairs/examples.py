"""Scores + encodings -> pictures of the pairs that a band keeps and refuses, so that people can judge its ends by eye.

In: every pair once, from the pass of `selection.select`. A reservoir keeps the few pairs of each class with the smallest hashes, so
the choice depends on the scores and the band alone. Out: PNGs, one labelled sheet of pairs per class (too far, kept, too near) and
the histogram of scores with the band. Only the row groups of the pairs shown are opened, and only their columns of pictures.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from semantica.data.dataset import Manifest, RowGroups
from semantica.data.location import Location
from semantica.errors import DataError
from semantica.pairs.selection import BandConfig, ScoredPairs

TOO_FAR, KEPT, TOO_NEAR = "too-far", "kept", "too-near"

_MAX_EDGE = 0.05  # how near to an end of the band a pair is said to be at its edge
_PER_ROW = 4  # pairs shown of each part of a class
_POOL = 16  # candidates kept of each part, so that the pairs shown can come from different pages
_PICTURE_PX = 128
_MAX_SIDE_PX = 4096
_GAP_PX = 14
_FONT_PX = 13
_INK, _FAINT, _PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


@dataclass(frozen=True, order=True)
class Example:
    """One pair: its score, the file and row of its episode, and its two pictures there."""

    score: float
    file: int
    row: int
    first: int
    second: int


@dataclass(frozen=True)
class Part:
    """A part of a class of pairs: those with low <= score < high, as float32."""

    kind: str
    title: str
    low: np.float32
    high: np.float32


@dataclass(frozen=True)
class Shown:
    """What is drawn of an example: its score, its two pictures (encoded) and the page they are from."""

    score: float
    pictures: tuple[bytes, bytes]
    page_url: str


def parts_of(band: BandConfig) -> tuple[Part, ...]:
    """The parts of the three classes; the band's own ends are inside it."""
    low, high = np.float32(band.low), np.nextafter(np.float32(band.high), np.float32(np.inf))
    edge = np.float32(min(_MAX_EDGE, (band.high - band.low) / 4))
    middle = np.float32((band.low + band.high) / 2)
    far, near, infinity = np.float32(low - edge), np.float32(high + edge), np.float32(np.inf)
    return (
        Part(TOO_FAR, f"far below the band: under {far:.3f}", -infinity, far),
        Part(TOO_FAR, f"just below the band: {far:.3f} to {band.low:g}", far, low),
        Part(KEPT, f"low edge: from {band.low:g}", low, np.float32(low + edge)),
        Part(KEPT, f"middle: near {middle:.3f}", np.float32(middle - edge / 2), np.float32(middle + edge / 2)),
        Part(KEPT, f"high edge: up to {band.high:g}", np.float32(high - edge), high),
        Part(TOO_NEAR, f"just above the band: {band.high:g} to {near:.3f}", high, near),
        Part(TOO_NEAR, f"far above the band: over {near:.3f}", near, infinity),
    )


class Reservoir:
    """Watches `select` and keeps, of each part, the pairs whose keyed hash is smallest: a fair sample in memory for 16 a part."""

    def __init__(self, band: BandConfig, key: str) -> None:
        self.parts = parts_of(band)
        self._seed = np.uint64(int.from_bytes(hashlib.sha256(f"{key}/{band}".encode()).digest()[:8], "little"))
        self._seen = 0
        self._pools: list[list[tuple[int, Example]]] = [[] for _ in self.parts]

    def __call__(self, pairs: ScoredPairs) -> None:
        """Take the pairs that follow those seen so far."""
        ranks = _mixed(np.arange(self._seen, self._seen + len(pairs.scores), dtype=np.uint64) + self._seed)
        self._seen += len(ranks)
        for index, (part, pool) in enumerate(zip(self.parts, self._pools, strict=True)):
            inside = (pairs.scores >= part.low) & (pairs.scores < part.high)
            if len(pool) == _POOL:
                inside &= ranks < np.uint64(pool[-1][0])
            found = np.flatnonzero(inside)
            best = found[np.argsort(ranks[found])[:_POOL]]
            joined = pool + [(int(ranks[p]), _example(pairs, int(p))) for p in best]
            self._pools[index] = sorted(joined)[:_POOL]

    def chosen(self) -> Iterator[tuple[Part, list[Example]]]:
        """The examples of each part that has any, by score; of different pages as far as there are some."""
        for part, pool in zip(self.parts, self._pools, strict=True):
            ranked = [example for _, example in pool]
            by_page = {(e.file, e.row): e for e in reversed(ranked)}
            apart = [e for e in ranked if by_page[e.file, e.row] is e]
            rest = [e for e in ranked if by_page[e.file, e.row] is not e]
            if ranked:
                yield part, sorted((apart + rest)[:_PER_ROW])


def _mixed(values: UInt64[np.ndarray, " m"]) -> UInt64[np.ndarray, " m"]:
    """A bijective hash of 64-bit integers (the finaliser of splitmix64, Steele 2014)."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def _example(pairs: ScoredPairs, pair: int) -> Example:
    first, second = int(pairs.ends[0][pair]), int(pairs.ends[1][pair])
    episode = int(np.searchsorted(pairs.first_image + pairs.num_images, first, side="right"))
    start = int(pairs.first_image[episode])
    return Example(float(pairs.scores[pair]), pairs.file, pairs.first_row + episode, first - start, second - start)


def example_pngs(encodings: Location, source: Manifest, selection: Manifest, reservoir: Reservoir) -> dict[str, bytes]:
    """{name: PNG}: the histogram and a sheet for each class that has pairs. `source` is the manifest of the encodings.

    Raises DataError when a picture cannot be read.
    """
    band = selection.config
    reader = RowGroups(encodings, ["page_url", "images"], stage="pairs", made_by="encode")
    pngs = {"scores": histogram_png(selection)}
    titles = {
        TOO_FAR: f"Refused, too far: {band['score']} < {band['low']:g}",
        KEPT: f"Kept: {band['low']:g} <= {band['score']} <= {band['high']:g}",
        TOO_NEAR: f"Refused, too near: {band['score']} > {band['high']:g}",
    }
    for kind, title in titles.items():
        rows = [(p.title, [_shown(reader, source, e) for e in examples]) for p, examples in reservoir.chosen() if p.kind == kind]
        if rows:
            pngs[f"pairs-{kind}"] = sheet_png(title, rows)
    return pngs


def _shown(reader: RowGroups, source: Manifest, example: Example) -> Shown:
    entry = source.shards()[example.file]
    starts = np.cumsum([0, *entry.row_group_rows])
    group = int(np.searchsorted(starts, example.row, side="right")) - 1
    table = reader.read(entry, group)
    row = table.slice(example.row - int(starts[group]), 1).to_pylist()[0]
    first, second = row["images"][example.first]["bytes"], row["images"][example.second]["bytes"]
    return Shown(example.score, (first, second), row["page_url"])


def sheet_png(title: str, rows: Sequence[tuple[str, Sequence[Shown]]]) -> bytes:
    """A PNG of labelled rows of pairs, each side by side with its score and its page written below."""
    font, large = ImageFont.load_default(size=_FONT_PX), ImageFont.load_default(size=_FONT_PX + 4)
    cell = (2 * _PICTURE_PX + 2, _PICTURE_PX + 2 * (_FONT_PX + 5))
    line = 2 * _FONT_PX
    width = _GAP_PX + _PER_ROW * (cell[0] + _GAP_PX)
    canvas = Image.new("RGB", (width, 3 * _GAP_PX + line + len(rows) * (line + cell[1] + _GAP_PX)), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP_PX, _GAP_PX), title, font=large, fill=_INK)
    for index, (label, pairs) in enumerate(rows):
        top = 2 * _GAP_PX + line + index * (line + cell[1] + _GAP_PX)
        draw.text((_GAP_PX, top), label, font=font, fill=_INK)
        for column, pair in enumerate(pairs):
            left = _GAP_PX + column * (cell[0] + _GAP_PX)
            for side, data in enumerate(pair.pictures):
                canvas.paste(_thumbnail(data), (left + side * (_PICTURE_PX + 2), top + line))
            below = top + line + _PICTURE_PX + 4
            draw.text((left, below), f"{pair.score:.3f}", font=font, fill=_INK)
            draw.text((left, below + _FONT_PX + 3), _fitted(pair.page_url, font, cell[0]), font=font, fill=_FAINT)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def _thumbnail(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            if max(image.size) > _MAX_SIDE_PX:
                raise DataError(
                    f"pairs: a stored picture is {image.size} px, expected at most {_MAX_SIDE_PX}; run semantica ingest again"
                )
            enlarge = max(image.size) < _PICTURE_PX  # repeat pixels, which shows exactly what is stored
            how = Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS
            return image.convert("RGB").resize((_PICTURE_PX, _PICTURE_PX), how)
    except (OSError, SyntaxError) as error:
        raise DataError(f"pairs: a stored picture cannot be decoded ({error}); run semantica ingest again") from None


def _fitted(url: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The address without its scheme, shortened in its middle: host and file name say most."""
    text = "".join(c if " " < c < "\x7f" else "?" for c in url.partition("://")[2] or url)
    kept = len(text)
    shown = text
    while font.getlength(shown) > width and kept > 2:
        kept -= 1
        shown = f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"
    return shown


def histogram_png(selection: Manifest) -> bytes:
    """A PNG of the histogram of scores: the band shaded, and in the title what it leaves."""
    counts, band = selection.counts, selection.config
    histogram = np.array(selection.facts["histogram"])
    first, last = selection.facts["histogram_range"]
    edges = np.linspace(first, last, len(histogram) + 1)
    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.axvspan(band["low"], band["high"], color="#3f86c9", alpha=0.18, linewidth=0)
    axes.bar(edges[:-1], histogram, width=np.diff(edges), align="edge", color="#3f4a54")
    for value in (band["low"], band["high"]):
        axes.axvline(value, color="#d67d1e", linewidth=1.4, linestyle="--")
        axes.annotate(f"{value:g}", (value, 1), xycoords=("data", "axes fraction"), xytext=(3, -12), textcoords="offset points")
    used = np.flatnonzero(histogram)
    if len(used):  # the ends of [-1, 1] are often empty
        axes.set_xlim(min(edges[used[0]], band["low"]) - 0.05, max(edges[used[-1] + 1], band["high"]) + 0.05)
    axes.set_xlabel("cosine, corpus mean subtracted" if band["score"] == "centred_cosine" else "cosine")
    axes.set_ylabel("pairs")
    kept, pairs, targets, images = (counts[f"num_{c}"] for c in ("pairs_kept", "pairs", "targets", "images"))
    axes.set_title(
        f"yield: {kept / max(1, pairs):.1%} of {pairs:,} pairs; {targets / max(1, images):.1%} of {images:,} pictures are targets"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
