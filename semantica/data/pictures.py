"""The pictures of a dataset: which there are, where each one lies, its stored bytes and its pixels.

In: finished episodes or encodings. `list_pictures` names every picture without reading one; `StoredPictures` reads those asked for
from their row groups; `decode` makes pixels of its stored bytes. Everything that opens a stored picture goes through these three.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from semantica.data.dataset import RowGroups, read_manifest, read_shard
from semantica.data.location import Location
from semantica.data.schemas import HELD_OUT
from semantica.errors import DataError

TokensOf: TypeAlias = Callable[[Sequence[bytes]], Tensor]
"""Stored pictures -> tokens (M, N, D), float32, with the values that encodings would hold."""


@dataclass(frozen=True)
class PictureRef:
    """One picture of one page, and where it lies: the index of the file in its sub-folder, and of the row group in the file.

    page_url (the class where a label stands for a page) and the stored side are known of listed pictures.
    """

    image_id: str
    episode_id: str
    file: int
    group: int
    page_url: str = field(default="", compare=False)
    side_px: int = field(default=0, compare=False)


def list_pictures(encodings: Location, prefix: str = HELD_OUT) -> list[PictureRef]:
    """Every picture of a sub-folder of finished encodings in stored order, as often as it stands on pages; none is read."""
    columns = ["episode_id", "page_url", "images.list.element.image_id", "images.list.element.width"]
    refs: list[PictureRef] = []
    for file, entry in enumerate(read_manifest(encodings, "encodings").shards(prefix)):
        table = read_shard(encodings, entry, columns)
        groups = np.repeat(np.arange(len(entry.row_group_rows)), entry.row_group_rows).tolist()
        rows = zip(groups, *(table[name].to_pylist() for name in ("episode_id", "page_url", "images")), strict=True)
        refs += [
            PictureRef(image["image_id"], episode_id, file, group, page_url, image["width"])
            for group, episode_id, page_url, images in rows
            for image in images
        ]
    return refs


class StoredPictures:
    """`stored.read(refs)`: the bytes of pictures in a sub-folder of encodings, row group by row group."""

    def __init__(self, encodings: Location, prefix: str = HELD_OUT, *, stage: str = "evaluate") -> None:
        self.encodings, self.stage = encodings, stage
        self._files = read_manifest(encodings, "encodings").shards(prefix)
        self._groups = RowGroups(encodings, ["images"], stage=stage, made_by="encode")

    def read(self, refs: Iterable[PictureRef]) -> dict[str, bytes]:
        """image_id -> bytes, in the order of `refs`. Raises DataError when a file is not readable or lacks a picture."""
        wanted = {ref.image_id: ref for ref in refs}
        stored: dict[str, bytes] = {}
        for file, group in dict.fromkeys((ref.file, ref.group) for ref in wanted.values()):
            names = {name for name, ref in wanted.items() if (ref.file, ref.group) == (file, group)}
            for row in self._groups.read(self._files[file], group)["images"].to_pylist():
                stored.update({image["image_id"]: image["bytes"] for image in row if image["image_id"] in names})
        missing = [name for name in wanted if name not in stored]
        if missing:
            raise DataError(
                f"{self.stage}: {self.encodings} no longer holds the picture {missing[0]}; delete the output and run again"
            )
        return {name: stored[name] for name in wanted}


def decode(data: bytes, resolution_px: int) -> UInt8[Tensor, "3 h w"]:
    """The RGB pixels of a stored square picture at resolution_px; a larger picture is area-averaged. Raises DataError."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        image.load()
        rgb = image if image.mode == "RGB" else image.convert("RGB")  # which copies
        if rgb.size != (resolution_px, resolution_px):
            if min(rgb.size) < resolution_px:
                raise DataError(
                    f"pairs: target must be at least {resolution_px} px, got {rgb.size[0]}x{rgb.size[1]}; ingest larger"
                )
            rgb = rgb.resize((resolution_px, resolution_px), Image.Resampling.BOX)
        # Line by line the reds, the greens, the blues: Pillow separates the channels faster than a strided copy does.
        lines = np.frombuffer(bytearray(rgb.tobytes("raw", "RGB;L")), np.uint8).reshape(resolution_px, 3, resolution_px)
    return torch.from_numpy(lines).permute(1, 0, 2)


def to_array(pixels: UInt8[Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels as NumPy and matplotlib hold a picture."""
    array: np.ndarray = pixels.permute(1, 2, 0).numpy()
    return array
