"""Bytes of every stage's files: the rows of the datasets, their manifests and receipts, and the checkpoints of a training.

In: the numbers of pictures and pages, the bytes per picture in the episodes (measured on a finished sample, or estimated), and the
widths of encoder and denoiser. Out: bytes. Pictures, embeddings, tokens and scores are stored uncompressed, so their size is
arithmetic. Names, URLs and Parquet levels are compressed, and small in comparison.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from semantica.data.dataset import Manifest
from semantica.data.schemas import HELD_OUT
from semantica.data.shard_writer import MAX_GROUP_BYTES
from semantica.denoiser.uvit import UViT
from semantica.encoders.settings import EncodeConfig
from semantica.episodes.ingest import IngestConfig
from semantica.errors import ConfigError
from semantica.planning.model import encoder_shape
from semantica.training.recipe import TrainConfig

_HALF, _FLOAT = 2, 4
# Lossless WebP of real pictures at the effort ingest uses, per pixel: 31 KB at 256 px (measured: see episodes/images.py).
_BYTES_PER_PIXEL = 31_000 / 256**2
# Compressed bytes per picture: image_id, URL, and the picture's share of the page's names. Estimated without a sample.
_PICTURE_NAMES = 45
# Bytes that Parquet adds, measured on files of the project's writer. Levels (where a list ends) per list entry; a column chunk with
# its page headers and its footer entry; in scores: an episode without its numbers, a row group, a file with its schema.
_LEVELS, _CHUNK, _NUM_OLD_COLUMNS = 6, 125, 8
_SCORE_ROW, _SCORE_GROUP, _SCORE_FILE = 20.1, 432, 770
# Bytes of JSON: a file in a manifest; a file in a receipt; the line with the number of rows of a row group; a row group of a
# selection without its digits; the rest of a selection without the digits of its histogram; a number in a sum of embeddings.
_ENTRY, _RECEIPT, _LINE, _SELECTED, _SELECTION, _NUMBER = 230, 330, 8, 28, 785, 18
_BINS = 80
_SAVED_TENSOR = 72  # type, shape and offset of a tensor in the header of a safetensors file, without its name


@dataclass(frozen=True)
class Split:
    """Pictures and pages of one side of a corpus."""

    num_images: float | int
    num_pages: float | int

    def scale(self, factor: float | int) -> Split:
        """Both numbers times `factor`."""
        return Split(self.num_images * factor, self.num_pages * factor)


@dataclass(frozen=True)
class Corpus:
    """The corpus of a plan. picture_bytes: bytes of the episodes per picture. pairs_per_page: pairs per training page."""

    train: Split
    held_out: Split
    pairs_per_page: float | int
    picture_bytes: float | int
    measured: bool = False

    @property
    def num_images(self) -> float:
        """Pictures of both sides."""
        return self.train.num_images + self.held_out.num_images


def estimate_corpus(num_images: int, images_per_page: float | int, ingest: IngestConfig) -> Corpus:
    """A corpus in which all pages have the same number of pictures, with the bytes per pixel of real pictures at 256 px."""
    share, pages = ingest.held_out_share, num_images / images_per_page
    by_page = ingest.split_by == "page"
    train = Split(num_images * (1 - share), pages * (1 - share if by_page else share < 1))
    held_out = Split(num_images * share, pages * (share if by_page else share > 0))
    shown = images_per_page if by_page else images_per_page * (1 - share)
    picture = ingest.image.image_px**2 * _BYTES_PER_PIXEL + _PICTURE_NAMES
    return Corpus(train, held_out, max(0.0, shown * (shown - 1) / 2), picture)


def extrapolate_corpus(num_images: int, episodes: Manifest, ingest: IngestConfig, pairs_per_page: float | None = None) -> Corpus:
    """A corpus like the sample of a finished ingest: bytes per picture and pictures per page are the sample's.

    pairs_per_page: from the sample's scores; None: as if all pages had the same size. Raises ConfigError when the sample has
    another picture size, or no page to train on.
    """
    sample_px, image_px = episodes.config["image"]["image_px"], ingest.image.image_px
    if sample_px != image_px:
        raise ConfigError(
            f"episodes: the sample's pictures have {sample_px} px, the plan's {image_px}; pass the preset of the sample, "
            f"or --ingest.image.image-px {sample_px}"
        )
    counts = episodes.counts
    sides = [Split(counts.get(f"num_{side}_images", 0), counts.get(f"num_{side}_episodes", 0)) for side in ("train", HELD_OUT)]
    num = sides[0].num_images + sides[1].num_images
    if not sides[0].num_pages:
        raise ConfigError("episodes: the sample has no page to train on; run semantica ingest on a larger one")
    size = sides[0].num_images / sides[0].num_pages
    pairs = size * (size - 1) / 2 if pairs_per_page is None else pairs_per_page
    files = sum(f.num_bytes for prefix in ("", HELD_OUT) for f in episodes.shards(prefix))
    train, held_out = (side.scale(num_images / num) for side in sides)
    return Corpus(train, held_out, pairs, files / num, measured=True)


@dataclass(frozen=True)
class DatasetBytes:
    """Bytes of each dataset's rows; bookkeeping: manifests and receipts of all datasets; numbers of shards and row groups."""

    episodes: float | int
    encodings: float | int
    scores: float | int
    selection: float | int
    bookkeeping: float | int
    num_shards: int
    num_row_groups: int
    token_bytes: float | int
    pooled_bytes: float | int

    @property
    def total(self) -> float:
        """Bytes of all datasets, with manifests and receipts."""
        return self.episodes + self.encodings + self.scores + self.selection + self.bookkeeping


def dataset_bytes(corpus: Corpus, encode: EncodeConfig, num_shards: int, *, rows_per_group: int = 64) -> DatasetBytes:
    """The bytes of a corpus's datasets, each in `num_shards` shards. rows_per_group: of the episodes."""
    shape = encoder_shape(encode.encoder)
    pooled = float(_HALF * shape.width)
    tokens = pooled * shape.num_tokens(encode.encoder.image_px) if encode.store_tokens else 0.0
    columns = 2 if tokens else 1
    sides = [side for side in (corpus.train, corpus.held_out) if side.num_pages]
    old = [_num_groups(side, num_shards, rows_per_group, corpus.picture_bytes) for side in sides]
    new = [_num_groups(side, num_shards, encode.rows_per_group, corpus.picture_bytes + pooled + tokens) for side in sides]
    # Encodings cut the columns of the episodes into other row groups, and add column chunks for their own columns.
    chunks = columns * sum(new) + _NUM_OLD_COLUMNS * (sum(new) - sum(old))
    groups = new[0]
    levels = min(3.1, corpus.pairs_per_page / 6)  # of a list of numbers: one bit per number, until run lengths are shorter
    scores = corpus.train.num_pages * (_SCORE_ROW + 2 * (levels + _FLOAT * corpus.pairs_per_page))
    num_pairs = corpus.train.num_pages * corpus.pairs_per_page
    draws = corpus.train.num_images / groups
    selected = _SELECTED + _digits(num_shards) + _digits(groups / num_shards) + len(str(round(draws)))
    receipts = num_shards * (_RECEIPT * 3 + len(sides) * (_RECEIPT + _NUMBER * shape.width))
    manifests = num_shards * _ENTRY * (2 * (len(sides) + 1) + 1) + _LINE * (sum(old) + sum(new) + groups)
    return DatasetBytes(
        episodes=corpus.num_images * corpus.picture_bytes,
        encodings=corpus.num_images * (corpus.picture_bytes + pooled + tokens + columns * _LEVELS) + chunks * _CHUNK,
        scores=scores + groups * _SCORE_GROUP + num_shards * _SCORE_FILE,
        selection=groups * selected + _SELECTION + _BINS * (1 + math.log10(1 + num_pairs / _BINS)),
        bookkeeping=receipts + manifests,
        num_shards=num_shards,
        num_row_groups=groups,
        token_bytes=tokens,
        pooled_bytes=pooled,
    )


def _num_groups(side: Split, num_shards: int, rows_per_group: int, image_bytes: float | int) -> int:
    """Row groups in all files of one side. A group ends at `rows_per_group` pages, or with the page that takes it over 64 MiB."""
    pages = side.num_pages / num_shards
    by_size = MAX_GROUP_BYTES / (image_bytes * side.num_images / side.num_pages) + 0.5
    return num_shards * max(1, math.ceil(pages / min(rows_per_group, max(1.0, by_size)) - 1e-9))


def _digits(num: float | int) -> float:
    """The mean number of digits of the numbers below num."""
    whole = max(1, round(num))
    return sum(len(str(n)) for n in range(0, whole, -(-whole // 1000))) / len(range(0, whole, -(-whole // 1000)))


@dataclass(frozen=True)
class CheckpointBytes:
    """each: bytes of one checkpoint. num_kept: the most that stay on disk, with the final model."""

    each: int
    num_kept: int

    @property
    def total(self) -> int:
        """Bytes of all kept checkpoints and of the one that is being written."""
        return self.each * (self.num_kept + 1)


def checkpoint_bytes(train: TrainConfig) -> CheckpointBytes:
    """The checkpoints of a training: weights, EMA and Adam's moments in float32, with file headers and the recipe."""
    with torch.device("meta"):
        named = {name: p.numel() for name, p in UViT(train.denoiser).named_parameters()}
    weights = _FLOAT * sum(named.values())
    headers = sum(4 * (len(name) + _SAVED_TENSOR) + 2 * len("exp_avg_sq/") for name in named)
    provenance = 30 * train.denoiser.pooled_dim  # the corpus mean, as decimal text
    steps = range(train.checkpoint_every, train.num_steps + 1, train.checkpoint_every)
    kept_steps = train.keep.steps(dict.fromkeys([*steps, train.num_steps]))
    return CheckpointBytes(4 * weights + headers + provenance, len(kept_steps) + min(train.keep.best, len(steps)) + 1)
