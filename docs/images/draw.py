"""python docs/images/draw.py FOLDER: draws the README's six conditioning images as one page of pictures."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIDE_PX = 256


def canvas(colour: str = "white") -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture and the pen for it."""
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), colour)
    return image, ImageDraw.Draw(image)


def face() -> Image.Image:
    """A smiling face."""
    image, draw = canvas()
    draw.ellipse((20, 20, 236, 236), fill="#ffcc33")
    draw.ellipse((80, 85, 105, 120), fill="#553300")
    draw.ellipse((150, 85, 175, 120), fill="#553300")
    draw.arc((75, 95, 180, 190), 20, 160, fill="#553300", width=12)
    return image


def tree() -> Image.Image:
    """A fir."""
    image, draw = canvas()
    draw.rectangle((112, 160, 144, 240), fill="#885522")
    draw.polygon([(128, 10), (40, 120), (216, 120)], fill="#2e9e4f")
    draw.polygon([(128, 60), (20, 180), (236, 180)], fill="#2e9e4f")
    return image


def car() -> Image.Image:
    """A blue car."""
    image, draw = canvas()
    draw.rounded_rectangle((20, 110, 236, 190), 20, fill="#3366cc")
    draw.polygon([(70, 110), (100, 60), (170, 60), (200, 110)], fill="#88bbee")
    for left in (50, 160):
        draw.ellipse((left, 165, left + 50, 215), fill="#222222")
    return image


def apple() -> Image.Image:
    """A red apple."""
    image, draw = canvas()
    draw.ellipse((40, 60, 216, 236), fill="#cc2233")
    draw.rectangle((122, 25, 134, 75), fill="#663311")
    draw.ellipse((134, 30, 190, 60), fill="#44aa44")
    return image


def wall() -> Image.Image:
    """A wall of bricks, which fills the picture."""
    image, draw = canvas("#c8a064")
    for row, top in enumerate(range(0, SIDE_PX, 30)):
        for left in range(-30 if row % 2 else 0, SIDE_PX, 60):
            draw.rectangle((left, top, left + 58, top + 28), outline="#9a7440", width=3)
    return image


def house() -> Image.Image:
    """A house with a red roof."""
    image, draw = canvas()
    draw.polygon([(128, 16), (236, 110), (20, 110)], fill="#b23b3b")
    draw.rectangle((50, 110, 206, 236), fill="#e8d8b8")
    draw.rectangle((108, 160, 148, 236), fill="#6b4a2b")
    return image


if __name__ == "__main__":
    page = Path(sys.argv[1]) / "drawings"
    page.mkdir(parents=True, exist_ok=True)
    for make in (face, tree, car, apple, wall, house):
        make().save(page / f"{make.__name__}.png")
