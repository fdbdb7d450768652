"""Pages of generated pictures for benchmarks that need thousands of distinct ones, and an encoder of random weights; no download.

A picture has the low frequencies and the grain of a photograph, so that its files have a photograph's size: 12 KB of JPEG,
72 KB of lossless WebP at 256 px. What it shows is a function of its number alone.
"""

from __future__ import annotations

import io
import json
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

_GRAIN = 6.0  # levels of 255


def photograph(number: int, side: int = 256) -> bytes:
    """The JPEG of picture `number`: a smooth field of colours under grain, as no other number has."""
    random = np.random.default_rng(number)
    field = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    grain = np.roll(_grain(side), tuple(random.integers(0, side, 2)), (0, 1))
    stream = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(field) + grain, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


@lru_cache(maxsize=2)
def _grain(side: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, _GRAIN, (side, side, 3)).astype(np.float32)


def make_tree(root: Path, num_pages: int, pictures_a_page: int) -> Path:
    """A folder with a folder for every page, for the source `folder`."""
    for page in range(num_pages):
        folder = root / f"page-{page:05d}"
        folder.mkdir(parents=True)
        for index in range(pictures_a_page):
            (folder / f"{index}.jpg").write_bytes(photograph(page * pictures_a_page + index))
    return root


def make_tar(path: Path, num_pages: int, pictures_a_page: int) -> Path:
    """One tar with all pages, as img2dataset writes it when it is told to keep the URLs of pages, for the source `webdataset`."""
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as archive:
        for number in range(num_pages * pictures_a_page):
            facts = {"url": f"https://site.example/{number}.jpg", "page_url": f"https://site.example/{number // pictures_a_page}"}
            for suffix, data in (("jpg", photograph(number)), ("json", json.dumps(facts).encode())):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def make_encoder(folder: Path, *, width: int, num_layers: int, image_px: int) -> Path:
    """A DINOv2 of random weights in the folder format of a hub."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    settings = Dinov2Config(
        hidden_size=width, num_hidden_layers=num_layers, num_attention_heads=width // 64, image_size=image_px, patch_size=14
    )
    Dinov2Model(settings).save_pretrained(folder, safe_serialization=True)
    return folder
