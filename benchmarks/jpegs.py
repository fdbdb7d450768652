"""One set of JPEGs, and of token sequences if asked for, as four loaders read them: encodings, tars, MDS shards and single files.

The pictures are sprites of the arcade wheel (from the cache, or downloaded by pip), each many times: enlarged to 256 px on white
under the grain of a photograph, which no two of them share, so that all files differ and have about a photograph's size. Tokens are
random numbers in float16, which cost a reader and a compressor what real ones do. All formats hold the same bytes of both.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from semantica.data.assets import ARCADE, fetch
from semantica.data.dataset import StageOutput, read_manifest
from semantica.data.schemas import encodings_schema
from semantica.pairs.scores import finish_scores, score_shard
from semantica.pairs.selection import BandConfig, select, selection_stage

PICTURES_A_PAGE = 6
_SPRITES, _GRAIN = 96, 6.0  # files; levels of 255
_GROUPS_A_FILE, _PICTURES_A_TAR = 8, 256


@dataclass(frozen=True)
class Corpus:
    """So many pictures of `side` px with tokens (N, D), or none; pages of 6, rows_per_group of them in a row group."""

    num_pictures: int
    side: int = 256
    tokens: tuple[int, int] | None = None
    pooled_dim: int = 64
    rows_per_group: int = 16
    encoder: Mapping[str, object] = field(default_factory=dict)  # its identity, where tokens are to be computed
    config: Mapping[str, object] = field(default_factory=dict)  # of the stage that would have encoded the pictures

    def __post_init__(self) -> None:
        # Whole groups, so that every lane has as many draws as the others, and one epoch is every picture once.
        assert self.num_pictures % (PICTURES_A_PAGE * self.rows_per_group) == 0

    def picture(self, number: int) -> bytes:
        """The JPEG of a number, as no other number has."""
        return _jpeg(number, self.side)

    def tokens_of(self, number: int) -> np.ndarray:
        """The tokens of a number, float16."""
        assert self.tokens is not None
        return np.random.default_rng([1, number]).standard_normal(self.tokens, np.float32).astype(np.float16)

    def samples(self) -> Iterator[tuple[int, bytes, np.ndarray | None]]:
        """(number, JPEG, tokens or None) of every picture."""
        for number in range(self.num_pictures):
            yield number, self.picture(number), self.tokens_of(number) if self.tokens else None


@lru_cache(maxsize=4096)  # every format asks for them anew
def _jpeg(number: int, side: int) -> bytes:
    random = np.random.default_rng(number)
    grain = np.roll(_grain(side), tuple(random.integers(0, side, 2)), (0, 1))
    stream = io.BytesIO()
    levels = np.clip(_sprites(side)[number % _SPRITES] + grain, 0, 255).astype(np.uint8)
    Image.fromarray(levels).save(stream, "JPEG", quality=85)
    return stream.getvalue()


@lru_cache(maxsize=1)
def _sprites(side: int) -> list[np.ndarray]:
    """The largest sprites of the wheel as (side, side, 3), on white."""
    files = sorted(fetch(ARCADE).rglob("*.png"), key=lambda path: (-path.stat().st_size, path.name))
    found: list[np.ndarray] = []
    for path in files[:_SPRITES]:
        with Image.open(path) as image:
            rgba = image.convert("RGBA")
        ground = Image.new("RGBA", (max(rgba.size),) * 2, "white")
        ground.alpha_composite(rgba, ((ground.width - rgba.width) // 2, (ground.height - rgba.height) // 2))
        found.append(np.asarray(ground.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), np.float32))
    return found


@lru_cache(maxsize=1)
def _grain(side: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, _GRAIN, (side, side, 3)).astype(np.float32)


def write_encodings(folder: Path, corpus: Corpus) -> None:
    """The dataset that training reads, by the project's own writers: encodings, scores, and a selection of all pairs of a page."""
    config = {"store_tokens": corpus.tokens is not None, "rows_per_group": corpus.rows_per_group} | dict(corpus.config)
    stage = StageOutput(folder / "encodings", "encodings", config)
    stage.open()
    num_tokens, width = corpus.tokens or (None, None)
    schema = encodings_schema(corpus.pooled_dim, num_tokens, width)
    total, samples = np.zeros(corpus.pooled_dim), corpus.samples()
    num_pages = corpus.num_pictures // PICTURES_A_PAGE
    pages_a_file = _GROUPS_A_FILE * corpus.rows_per_group
    for first in range(0, num_pages, pages_a_file):
        with stage.shard_writer(f"shard-{first:07d}", corpus.rows_per_group) as writer:
            for page in range(first, min(first + pages_a_file, num_pages)):
                pooled = np.random.default_rng([2, page]).standard_normal((PICTURES_A_PAGE, corpus.pooled_dim)).astype(np.float16)
                total += pooled.astype(np.float64).sum(0)
                writer.write("", _page(page, [next(samples) for _ in pooled], pooled, schema))
    identity = {"num_tokens": num_tokens or 0, "token_dim": width or 1, "pooled_dim": corpus.pooled_dim} | dict(corpus.encoder)
    stage.finish({"num_episodes": num_pages}, {"encoder": identity, "corpus_mean": (total / corpus.num_pictures).tolist()})
    _write_selection(folder)


def _page(page: int, samples: list[tuple[int, bytes, np.ndarray | None]], pooled: np.ndarray, schema: pa.Schema) -> pa.Table:
    name = f"{page:032x}"
    images = [
        {"image_id": f"{number:032x}", "url": f"https://site.example/{number}.jpg", "bytes": data, "width": 0, "height": 0}
        for number, data, _ in samples
    ]
    row = {"episode_id": [name], "page_url": [name], "source": ["benchmark"], "images": [images], "pooled": [list(pooled)]}
    if "tokens" in schema.names:
        row["tokens"] = [[tokens.tobytes() for _, _, tokens in samples if tokens is not None]]
    return pa.table(row, schema=schema)


def _write_selection(folder: Path) -> None:
    source = read_manifest(folder / "encodings", "encodings")
    scores = StageOutput(folder / "scores", "scores", {}, {"encodings": source.hash})
    scores.open()
    mean = np.array(source.facts["corpus_mean"], np.float32)
    for entry in source.shards():
        score_shard(scores, folder / "encodings", entry, mean)
    finish_scores(scores, 0.0)
    band = BandConfig(low=-1.0, high=1.0)
    view = selection_stage(folder / "scores", band, folder / "selection")
    view.open()
    select(view, folder / "scores", band)


def write_files(folder: Path, corpus: Corpus) -> None:
    """NUMBER.jpg and NUMBER.npy of every picture, for a Dataset of torch's."""
    folder.mkdir()
    for number, data, tokens in corpus.samples():
        (folder / f"{number:07d}.jpg").write_bytes(data)
        if tokens is not None:
            np.save(folder / f"{number:07d}.npy", tokens)


def write_tars(folder: Path, corpus: Corpus) -> None:
    """Tars of 256 pictures each with members NUMBER.jpg and NUMBER.npy, by webdataset's own writer."""
    import webdataset

    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=_PICTURES_A_TAR, verbose=0) as writer:
        for number, data, tokens in corpus.samples():
            member = {"__key__": f"{number:07d}", "jpg": data}
            writer.write(member if tokens is None else member | {"npy": tokens})


def write_mds(folder: Path, corpus: Corpus) -> None:
    """MDS shards of 64 MiB, uncompressed, by mosaicml-streaming's own writer; tokens in its own type for arrays."""
    from streaming import MDSWriter

    shape = {} if corpus.tokens is None else {"tokens": "ndarray:float16:" + ",".join(map(str, corpus.tokens))}
    with MDSWriter(out=str(folder), columns={"jpg": "bytes"} | shape, size_limit=2**26) as writer:
        for _, data, tokens in corpus.samples():
            writer.write({"jpg": data} if tokens is None else {"jpg": data, "tokens": tokens})
