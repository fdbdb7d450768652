"""A corpus of concepts: the same thing as several vendors draw it, in one folder with its name, so that a folder is a page.

In: unpacked packages of drawings (SVG collections of Iconify, or pictures named by code point) and of names (emojibase). Out: a
tree root/NAME/VENDOR.png. Flags are left out: their meaning is in their colours alone. A concept that a single vendor draws is left
out too, since a page needs two pictures.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import resvg_py

from semantica.errors import DataError

_COMPONENTS, _FLAGS = 2, 9  # groups of emojibase
_VARIANT = "fe0f"  # a code point that asks for the coloured form; some vendors write it, some leave it out


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
    """Write every concept that two vendors or more draw into a folder of `root`. Returns the number of pictures.

    names: emojibase's compact.json. Raises DataError when a file is not what it should be.
    """
    drawings = {collection.vendor: collection.drawings(side_px) for collection in collections}
    num = 0
    for code, label in _concepts(names):
        drawn = {vendor: drawing for vendor, of in drawings.items() if (drawing := of.get(code)) is not None}
        if len(drawn) < 2:
            continue
        folder = root / _slug(label)
        folder.mkdir(parents=True, exist_ok=True)
        for vendor, drawing in drawn.items():
            drawing.write(folder / vendor)
        num += len(drawn)
    if not num:
        raise DataError(f"concepts: {names} names nothing that two collections draw; delete the cache and run again")
    return num


@dataclass(frozen=True)
class _File:
    path: Path

    def write(self, to: Path) -> None:
        """Copy it, with its own ending."""
        shutil.copyfile(self.path, to.with_suffix(self.path.suffix))


@dataclass(frozen=True)
class _Svg:
    icons: Mapping[str, Any]
    name: str
    side_px: int

    def write(self, to: Path) -> None:
        """Render it as a PNG with a transparent background."""
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
        to.with_suffix(".png").write_bytes(bytes(png))

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
    """(code points, name) of what is neither a component nor a flag, without its skin tones."""
    for entry in _read(names):
        if entry.get("group") not in (None, _COMPONENTS, _FLAGS):
            yield _key(entry["hexcode"]), entry["label"]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"concepts: {path} cannot be read ({error}); delete the cache and run again") from None


def _key(code_points: str) -> str:
    return "-".join(part for part in code_points.lower().split("-") if part != _VARIANT)


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
