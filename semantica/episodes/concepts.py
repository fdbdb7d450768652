"""A corpus of concepts: the same thing as several vendors draw it, in one folder with its name, so that a folder is a page.

In: unpacked packages of drawings (SVG collections of Iconify, or pictures named by code point) and of names (emojibase). Out: a
tree root/NAME/VENDOR.png. Not every emoji becomes a concept:

- Flags and single-vendor emoji are left out. The meaning of a flag is in its colours alone, and a page needs two pictures.
- Variants are left out: man, woman, hair, family and direction are written as sequences of a base emoji with a joiner.
- Repetitions are left out: a concept of which one drawing, mirrored or not, looks like a drawing of an earlier concept.

So whole pages can be held out: what a held-out page shows is on no other page. Of 1,644 emoji with two drawings or more, 207 are
variants and 52 repetitions; 1,385 concepts with 5,519 pictures are left. At 32 px no picture of one is identical to one of another,
and 5 concepts have a drawing that differs from another one's by the same vendor, mirrored or not, by less than 8 levels of 255
(root mean square).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import resvg_py
from PIL import Image, ImageOps

from semantica.episodes.clean import NearDuplicates, signature
from semantica.episodes.images import ImageConfig, decode
from semantica.episodes.quarantine import Refused
from semantica.errors import DataError

_COMPONENTS, _FLAGS = 2, 9  # groups of emojibase
_COLOURED = "fe0f"  # a code point that asks for the coloured form; some vendors write it, some leave it out
_JOINER = "200d"
_OF_VARIANTS = frozenset({
    "2640", "2642",  # female, male sign
    "27a1",  # facing right
    "1f9b0", "1f9b1", "1f9b2", "1f9b3",  # hair
    "1f466", "1f467", "1f468", "1f469", "1f9d2",  # boy, girl, man, woman, child: professions by gender, couples and families
})  # fmt: skip
_SIGNS = {"#": "number sign", "*": "asterisk"}  # in labels of keycaps, which are the same without
_SAME_BITS, _SAME_LEVELS = 4, 48  # as ingest's near_duplicate_bits and _levels; 24 levels leave white and yellow circles twice


@dataclass(frozen=True)
class Collection:
    """The drawings of one vendor. folder: an unpacked Iconify package (icons.json, chars.json), or pictures CODE-POINTS.webp."""

    vendor: str
    folder: Path

    def drawings(self, side_px: int) -> dict[str, _Drawing]:
        """The drawings by code points; an SVG is rendered, `side_px` wide and high, when it is written."""
        if not (self.folder / "icons.json").exists():
            return {_key(path.stem): _File(path) for path in sorted(self.folder.glob("*.webp"))}
        icons, chars = _read(self.folder / "icons.json"), _read(self.folder / "chars.json")
        return {_key(code): _Svg(icons, name, side_px) for code, name in chars.items()}


def write_concepts(root: Path, collections: Sequence[Collection], names: Path, *, side_px: int = 64) -> int:
    """Write every concept into a folder of `root`. Returns the number of pictures.

    names: emojibase's compact.json, whose order says which of two concepts that look alike is left out. Raises DataError when a
    file is not what it should be.
    """
    drawings = {collection.vendor: collection.drawings(side_px) for collection in collections}
    similar = NearDuplicates(_SAME_BITS, _SAME_LEVELS)
    num = 0
    for code, label in _concepts(names):
        drawn = {vendor: drawing.read() for vendor, of in drawings.items() if (drawing := of.get(code)) is not None}
        if len(drawn) < 2:
            continue
        pictures = [_picture(data, f"{label} by {vendor}", side_px) for vendor, (data, _) in drawn.items()]
        signatures = [signature(picture) for picture in pictures]
        mirrored = [signature(ImageOps.mirror(picture)) for picture in pictures]
        if any(similar.original_of(one) is not None for one in (*signatures, *mirrored)):
            continue
        for one in signatures:
            similar.keep(label, one)
        folder = root / _slug(label)
        if folder.exists():
            raise DataError(f"concepts: {label!r} and an earlier concept have one folder name, {folder.name!r}")
        folder.mkdir(parents=True)
        for vendor, (data, ending) in drawn.items():
            (folder / f"{vendor}{ending}").write_bytes(data)
        num += len(drawn)
    if not num:
        raise DataError(f"concepts: {names} names nothing that two collections draw; delete the cache and run again")
    return num


def _picture(data: bytes, name: str, side_px: int) -> Image.Image:
    try:
        return decode(data, ImageConfig(image_px=side_px, min_side_px=1)).picture.convert("RGB")
    except Refused as error:
        raise DataError(f"concepts: the drawing of {name} is no picture ({error}); delete the cache and run again") from None


@dataclass(frozen=True)
class _File:
    path: Path

    def read(self) -> tuple[bytes, str]:
        """Its bytes and its ending."""
        return self.path.read_bytes(), self.path.suffix


@dataclass(frozen=True)
class _Svg:
    icons: Mapping[str, Any]
    name: str
    side_px: int

    def read(self) -> tuple[bytes, str]:
        """A PNG of it with a transparent background, and its ending."""
        own = self._icon()
        left, top = (own.get(side, self.icons.get(side, 0)) for side in ("left", "top"))
        width, height = (own.get(side, self.icons.get(side, 16)) for side in ("width", "height"))
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{own["body"]}</svg>'
        )
        try:
            png = resvg_py.svg_to_bytes(svg_string=svg, width=self.side_px, height=self.side_px, skip_system_fonts=True)
        except ValueError as error:
            raise DataError(f"concepts: the drawing {self.name!r} cannot be rendered ({error})") from None
        return bytes(png), ".png"

    def _icon(self) -> Mapping[str, Any]:
        """The icon itself; an alias names its parent."""
        icons, aliases, name = self.icons["icons"], self.icons.get("aliases", {}), self.name
        for _ in range(len(aliases) + 1):
            if name in icons:
                icon: Mapping[str, Any] = icons[name]
                return icon
            name = aliases.get(name, {}).get("parent", "")
        raise DataError(f"concepts: the collection has no icon {self.name!r}")


_Drawing: TypeAlias = _File | _Svg


def _concepts(names: Path) -> Iterator[tuple[str, str]]:
    """(code points, name) of what is no component, flag or variant, without its skin tones."""
    for entry in _read(names):
        code = _key(entry["hexcode"])
        if entry.get("group") not in (None, _COMPONENTS, _FLAGS) and not _is_variant(code):
            yield code, entry["label"]


def _is_variant(code: str) -> bool:
    parts = code.split("-")
    return _JOINER in parts and not _OF_VARIANTS.isdisjoint(parts)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"concepts: {path} cannot be read ({error}); delete the cache and run again") from None


def _key(code_points: str) -> str:
    return "-".join(part for part in code_points.lower().split("-") if part != _COLOURED)


def _slug(label: str) -> str:
    """The label as the name of a folder."""
    for sign, word in _SIGNS.items():
        label = label.replace(sign, word)
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
