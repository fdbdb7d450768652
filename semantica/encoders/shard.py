"""One shard of episodes -> one shard of encodings, row group by row group: the pure function behind a worker of the stage `encode`.

In: the shard's files (training, held out) as the episodes' manifest names them. Out: the same files with encodings, a quarantine
file, and a receipt with counts and sums. A file is read only when its SHA-256 is the manifest's. A file that is truncated, or has
other content or another format, is quarantined whole: its encodings are empty, and the receipt holds its path, the reason and the
number of lost pictures. A picture that does not decode is one row of the quarantine. **Encoded + undecodable + in damaged files =
pictures in.**
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from semantica.data.dataset import FileEntry, StageOutput, read_manifest
from semantica.data.location import Location
from semantica.data.schemas import EPISODES, QUARANTINE
from semantica.encoders.encode import EncodedEpisodes, encode_stream, encoded_schema
from semantica.encoders.encoder import Encoder
from semantica.encoders.settings import EncodeConfig

QUARANTINE_FOLDER = "quarantine"
_DAMAGED_FILE = "damaged_file"  # the code that ingest gives a damaged file of a crawl
_CHUNK_BYTES = 2**20
_TABLE_BYTES = 2**24  # of one table with pictures and encodings; a few tables are in memory at once


class DamagedEpisodes(Exception):
    """A file of episodes that differs from its manifest. Never leaves this module: it becomes a row and a count."""

    def __init__(self, prefix: str, reason: str) -> None:
        super().__init__(prefix, reason)
        self.prefix, self.reason = prefix, reason


@dataclass(frozen=True)
class EpisodesShard:
    """The input of one call: the name of the shard and its files by sub-folder ("" is the folder itself)."""

    name: str
    entries: Mapping[str, FileEntry]


def encode_shard(
    stage: StageOutput, episodes: Location, shard: EpisodesShard, encoder: Encoder, settings: EncodeConfig
) -> dict[str, Any]:
    """Write the encodings of a shard into `stage`. Returns its receipt's stats: splits, encoder, damaged."""
    damaged: dict[str, str] = {}
    with ExitStack() as files:
        paths: dict[str, Path] = {}
        for prefix, entry in shard.entries.items():
            try:
                paths[prefix] = files.enter_context(_verified(episodes / entry.path, prefix, entry))
            except DamagedEpisodes as error:
                damaged[prefix] = error.reason
        while True:
            try:
                return _write(stage, episodes, shard, paths, damaged, encoder, settings)
            except DamagedEpisodes as error:  # the bytes are right but hold no episodes: begin again without this file
                damaged[error.prefix] = error.reason
                del paths[error.prefix]


def _write(
    stage: StageOutput,
    episodes: Location,
    shard: EpisodesShard,
    paths: Mapping[str, Path],
    damaged: Mapping[str, str],
    encoder: Encoder,
    settings: EncodeConfig,
) -> dict[str, Any]:
    splits = {prefix: _Sums(encoder.identity.pooled_dim) for prefix in shard.entries}
    with stage.shard_writer(shard.name, settings.rows_per_group) as writer:
        for prefix in shard.entries:
            writer.write(prefix, encoded_schema(encoder.identity, settings).empty_table())
        writer.write(QUARANTINE_FOLDER, _damaged_rows(shard, damaged))
        order: deque[str] = deque()
        for encoded in encode_stream(
            _tables(paths, settings.rows_per_group, _image_bytes(encoder, settings), order), encoder, settings
        ):
            prefix = order.popleft()
            writer.write(prefix, encoded.table)
            writer.write(QUARANTINE_FOLDER, encoded.quarantine)
            splits[prefix].add(encoded)
        lost = _num_images(episodes, shard) if damaged else {}
        stats = {
            "splits": {prefix: sums.to_dict() for prefix, sums in splits.items() if prefix not in damaged},
            "encoder": encoder.identity.to_dict(),
            "damaged": {
                prefix: {"path": shard.entries[prefix].path, "reason": reason, "num_images": lost.get(prefix)}
                for prefix, reason in damaged.items()
            },
        }
        writer.stats = stats
    return stats


class _Sums:
    """The counts and the sum of pooled embeddings of one file."""

    def __init__(self, pooled_dim: int) -> None:
        self.num_episodes = self.num_images = self.num_undecodable = self.num_episodes_lost = 0
        self.pooled_sum = np.zeros(pooled_dim)

    def add(self, encoded: EncodedEpisodes) -> None:
        """Add one table."""
        self.num_episodes += encoded.table.num_rows
        self.num_images += encoded.num_images
        self.num_undecodable += encoded.quarantine.num_rows
        self.num_episodes_lost += encoded.num_episodes_lost
        self.pooled_sum += encoded.pooled_sum

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the receipt."""
        return {**self.__dict__, "pooled_sum": self.pooled_sum.tolist()}


@contextmanager
def _verified(path: Location, prefix: str, entry: FileEntry) -> Iterator[Path]:
    """A local file whose bytes are those of the manifest: the file itself, or a copy of a remote file, which is read once."""
    digest, size = hashlib.sha256(), 0
    with ExitStack() as files:
        copy = None if isinstance(path, Path) else files.enter_context(tempfile.NamedTemporaryFile(suffix=".parquet"))
        try:
            with path.open("rb") as stream:
                while data := stream.read(_CHUNK_BYTES):
                    digest.update(data)
                    size += len(data)
                    if copy is not None:
                        copy.write(data)
        except OSError as error:
            raise DamagedEpisodes(prefix, f"not readable ({error.strerror or error})") from None
        if size != entry.num_bytes:
            raise DamagedEpisodes(prefix, f"expected {entry.num_bytes} bytes, got {size}")
        if digest.hexdigest() != entry.sha256:
            raise DamagedEpisodes(prefix, f"expected SHA-256 {entry.sha256[:12]}..., got {digest.hexdigest()[:12]}...")
        if copy is None:
            assert isinstance(path, Path)
            yield path
        else:
            copy.flush()
            yield Path(copy.name)


def _image_bytes(encoder: Encoder, settings: EncodeConfig) -> int:
    """The bytes of one picture's encodings."""
    identity = encoder.identity
    tokens = identity.num_tokens * identity.token_dim if settings.store_tokens else 0
    return np.dtype(np.float16).itemsize * (identity.pooled_dim + tokens)


def _tables(paths: Mapping[str, Path], rows: int, image_bytes: int, order: deque[str]) -> Iterator[pa.Table]:
    """The episodes of all files, in tables of up to `rows` pages and about 16 MiB (encodings included), at least one page each.

    The sub-folder of each table is put into `order`. Pages are read one by one: Arrow cannot read a nested column of 2 GiB at once.
    """
    for prefix, path in paths.items():
        try:
            # Without pre_buffer=False, Arrow keeps all row groups that it has read until the end.
            with path.open("rb") as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
                pages, size = list[pa.Table](), 0
                for batch in file.iter_batches(batch_size=1, columns=EPISODES.names, use_threads=False):
                    page = _page(batch)
                    pages.append(page)
                    size += page.nbytes + len(page["images"][0]) * image_bytes
                    if len(pages) == rows or size >= _TABLE_BYTES:
                        order.append(prefix)
                        yield pa.concat_tables(pages).combine_chunks()
                        pages, size = [], 0
                if pages:
                    order.append(prefix)
                    yield pa.concat_tables(pages).combine_chunks()
        except (pa.ArrowMemoryError, pa.ArrowNotImplementedError):  # limits of the machine and of Arrow: the file may be sound
            raise
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise DamagedEpisodes(prefix, f"not a Parquet file of episodes ({' '.join(str(error).split())[:200]})") from None


def _page(batch: pa.RecordBatch) -> pa.Table:
    """One row as EPISODES. Raises ValueError or KeyError when its columns are others."""
    try:
        return pa.Table.from_batches([batch]).select(EPISODES.names).cast(EPISODES)
    except pa.ArrowNotImplementedError as error:  # no such cast: the file has another schema (in reading it is Arrow's limit)
        raise ValueError(str(error)) from None


def _damaged_rows(shard: EpisodesShard, damaged: Mapping[str, str]) -> pa.Table:
    rows = [
        {"page_url": shard.entries[prefix].path, "url": "", "reason": _DAMAGED_FILE, "detail": reason}
        for prefix, reason in damaged.items()
    ]
    return pa.Table.from_pylist(rows, schema=QUARANTINE)


def _num_images(episodes: Location, shard: EpisodesShard) -> dict[str, int]:
    """The number of pictures that ingest wrote into each file of the shard; {} when its receipts are gone."""
    source = read_manifest(episodes, "episodes")
    for name, stats in StageOutput.of(episodes, source).receipts():
        if name == shard.name:
            return {p: int(stats["num_held_out_images" if p else "num_train_images"]) for p in shard.entries}
    return {}
