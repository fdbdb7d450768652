"""Encodings -> scores: the cosine of every pair of pictures of an episode, plain and with the corpus mean subtracted.

In: the pooled embeddings of a shard, one block of row groups at a time. Out: its scores in the same row groups, so that one index
finds both. Scores are stored once and never depend on a band. A band, and the choice between plain and mean-centred, is a view
that reads one small column (4 bytes per pair). The scores of an episode depend on its own pictures alone; they are computed in
float64 and rounded once to float32. All n(n-1)/2 pairs of n pictures are scored. Ingest cuts huge pages to `max_images_per_page`
(512 by default) by a keyed sample; a larger page is scored by rows of its matrix. A shard that is truncated or not the manifest's
is quarantined as a whole: its row groups hold no pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from semantica.data.dataset import FileEntry, Manifest, StageOutput
from semantica.data.location import Location
from semantica.data.schemas import SCORES
from semantica.errors import DataError

_BLOCK_VALUES = 2**22  # numbers read at once: 8 MiB of float16
_WORKING_BYTES = 2**20  # float64 of one batched product, which then stays in the processor's cache
_LARGE_PAGE = 512  # above it a page's matrix is made by rows
_PAGE_ROWS = 256
_MAX_LIST = 2**31 - 1  # Arrow's list offsets are int32


class UnreadableShardError(DataError):
    """A shard that is missing, truncated, or not the one of its manifest. `damage`: which and why, with its path in the folder."""

    def __init__(self, folder: Location, name: str, reason: str) -> None:
        super().__init__(f"{folder / name}: {reason}; make the dataset again")
        self.damage = f"{name}: {reason}"


def flat_pooled(column: pa.ChunkedArray) -> tuple[Int[np.ndarray, " e"], np.ndarray]:
    """Number of pictures of each episode (e,), and the embeddings of all of them (n, D), as stored."""
    array = column.combine_chunks()
    vectors = array.flatten()  # a FixedSizeListArray of all pictures
    values = vectors.flatten().to_numpy(zero_copy_only=False)
    sizes = np.diff(array.offsets.to_numpy()).astype(np.int64)
    return sizes, values.reshape(int(sizes.sum()), vectors.type.list_size)


def pooled_rows(column: pa.ChunkedArray) -> list[Float[np.ndarray, "n d"]]:
    """The pooled embeddings (n, D), float32, of each episode of an encodings column."""
    sizes, vectors = flat_pooled(column)
    ends = np.cumsum(sizes)
    return [vectors[end - size : end].astype(np.float32) for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)]


def cosine_upper(pooled: Float[np.ndarray, "n d"], mean: Float[np.ndarray, " d"] | None = None) -> Float[np.ndarray, " m"]:
    """Cosines of all pairs i < j, row by row, m = n(n-1)/2; with `mean` subtracted first when given.

    A zero vector scores 0, one with NaN or infinity NaN, which no band holds. Float64 rounded to float32: within half a unit in the
    last place (3e-8) of the exact cosine of the stored numbers, and exactly 1 for equal vectors.
    """
    return _triangles(pooled, np.array([len(pooled)]), (mean,))[0]


def square(upper: Float[np.ndarray, " m"], n: int) -> Float[np.ndarray, "n n"]:
    """The symmetric matrix (n, n) of an upper triangle, NaN on the diagonal (a picture is no pair with itself)."""
    matrix = np.full((n, n), np.nan, np.float32)
    above = ~np.tri(n, dtype=np.bool_)  # row by row, as the triangle is stored
    matrix[above] = upper
    matrix.T[above] = upper
    return matrix


def score_table(encodings: pa.Table, corpus_mean: Float[np.ndarray, " d"]) -> pa.Table:
    """The SCORES table of an encodings table with columns episode_id and pooled, row for row."""
    sizes, vectors = flat_pooled(encodings["pooled"])
    ends = np.concatenate([[0], np.cumsum(sizes * (sizes - 1) // 2)])
    if ends[-1] > _MAX_LIST:
        raise DataError(
            f"pairs: expected at most {_MAX_LIST} pairs in a block, got {ends[-1]}; lower max_images_per_page in ingest"
        )
    offsets = pa.array(ends.astype(np.int32))
    columns = [pa.ListArray.from_arrays(offsets, pa.array(c)) for c in _triangles(vectors, sizes, (None, corpus_mean))]
    return pa.Table.from_arrays([encodings["episode_id"], pa.array(sizes.astype(np.int32)), *columns], schema=SCORES)


def _triangles(
    vectors: Float[np.ndarray, "n d"], sizes: Int[np.ndarray, " e"], means: Sequence[Float[np.ndarray, " d"] | None]
) -> list[Float[np.ndarray, " m"]]:
    """For each of `means` the upper triangles of all episodes, one after the other.

    Episodes of one size share a batched product. It calls BLAS once an episode, with shapes that depend on that episode alone, so
    neighbours change no bit of a score.
    """
    first_image = np.cumsum(sizes) - sizes
    num_pairs = sizes * (sizes - 1) // 2
    first_pair = np.cumsum(num_pairs) - num_pairs
    results = [np.empty(int(num_pairs.sum()), np.float32) for _ in means]
    by_size = np.argsort(sizes, kind="stable")
    kinds, starts = np.unique(sizes[by_size], return_index=True)
    for n, episodes in zip(kinds.tolist(), np.split(by_size, starts[1:]), strict=True):
        if n < 2:
            continue
        if n > _LARGE_PAGE:
            for start, pair in zip(first_image[episodes].tolist(), first_pair[episodes].tolist(), strict=True):
                for result, mean in zip(results, means, strict=True):
                    _large_page(vectors[start : start + n], mean, result[pair : pair + n * (n - 1) // 2])
            continue
        i, j = np.triu_indices(n, k=1)
        step = max(1, _WORKING_BYTES // (8 * n * max(n, vectors.shape[1])))
        for start in range(0, len(episodes), step):
            part = episodes[start : start + step]
            x = vectors[first_image[part, None] + np.arange(n)].astype(np.float64)
            places = first_pair[part, None] + np.arange(len(i))
            for result, mean in zip(results, means, strict=True):
                result[places] = _cosines(x if mean is None else x - mean, i, j)
    return results


def _cosines(x: Float[np.ndarray, "g n d"], i: Int[np.ndarray, " m"], j: Int[np.ndarray, " m"]) -> Float[np.ndarray, "g m"]:
    with np.errstate(invalid="ignore", over="ignore"):  # a vector with NaN or infinity: its scores are NaN
        gram = np.matmul(x, x.transpose(0, 2, 1))
        inverse = _inverse(np.sqrt(np.diagonal(gram, axis1=1, axis2=2)))
        # Rounding can leave 1 + 2e-16, which a band with high = 1 must not lose.
        cosines: np.ndarray = np.clip(gram[:, i, j] * inverse[:, i] * inverse[:, j], -1.0, 1.0)
    return cosines.astype(np.float32)


def _large_page(pooled: Float[np.ndarray, "n d"], mean: Float[np.ndarray, " d"] | None, out: Float[np.ndarray, " m"]) -> None:
    """Write the triangle of one page into `out`, holding 256 rows of its matrix at a time."""
    x = pooled.astype(np.float64)
    x -= 0 if mean is None else mean
    done = 0
    with np.errstate(invalid="ignore", over="ignore"):
        inverse = _inverse(np.sqrt(np.einsum("nd,nd->n", x, x)))
        for start in range(0, len(x), _PAGE_ROWS):
            rows = slice(start, start + _PAGE_ROWS)
            block = x[rows] @ x[start:].T * inverse[rows, None] * inverse[start:]
            for index, row in enumerate(np.clip(block, -1.0, 1.0)):
                own = row[index + 1 :]
                out[done : done + len(own)] = own
                done += len(own)


def _inverse(length: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    inverse: np.ndarray = np.divide(1.0, length, out=np.zeros_like(length), where=length != 0)
    return inverse


def read_blocks(folder: Location, entry: FileEntry, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """(first row, rows) of runs of whole row groups of a shard, about 4 million numbers each; only `columns` are read.

    Damage in what is read is found by the checksums of its pages; the SHA-256 would need the pictures and the tokens too.

    Raises UnreadableShardError when the file is missing, of another size, content or shape than its manifest says, or not readable.
    """
    try:
        _check_content(folder, entry)
        with (folder / entry.path).open("rb") as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
            _check_layout(folder, entry, file, columns)
            first = 0
            for run in _runs(file.metadata, columns):
                yield first, file.read_row_groups(run, columns=list(columns), use_threads=False)
                first += sum(entry.row_group_rows[g] for g in run)
    except (UnreadableShardError, pa.ArrowMemoryError):  # too little memory is this machine's trouble, not the file's
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UnreadableShardError(folder, entry.path, f"not readable ({' '.join(str(error).split())})") from None


def _check_content(folder: Location, entry: FileEntry) -> None:
    path = folder / entry.path
    if not path.exists():
        raise UnreadableShardError(folder, entry.path, "missing")
    if (size := path.stat().st_size) != entry.num_bytes:
        raise UnreadableShardError(folder, entry.path, f"expected {entry.num_bytes} bytes, got {size}")


def _check_layout(folder: Location, entry: FileEntry, file: pq.ParquetFile, columns: Sequence[str]) -> None:
    rows = tuple(file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups))
    if rows != entry.row_group_rows:
        reason = f"expected {entry.num_rows} rows in {len(entry.row_group_rows)} row groups, got {sum(rows)} in {len(rows)}"
        raise UnreadableShardError(folder, entry.path, reason)
    if missing := set(columns) - set(file.schema_arrow.names):
        raise UnreadableShardError(folder, entry.path, f"no column {', '.join(sorted(missing))}")


def _runs(metadata: pq.FileMetaData, columns: Sequence[str]) -> Iterator[list[int]]:
    # Not metadata.schema, which pyarrow ties to it in a cycle: the metadata of every file would wait for the garbage collector.
    chunks = [metadata.row_group(0).column(c) for c in range(metadata.num_columns)] if metadata.num_row_groups else []
    wanted = [c for c, chunk in enumerate(chunks) if chunk.path_in_schema.partition(".")[0] in columns]
    run: list[int] = []
    values = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        values += sum(group.column(c).num_values for c in wanted)
        if run and values > _BLOCK_VALUES:
            yield run
            run, values = [], sum(group.column(c).num_values for c in wanted)
        run.append(index)
    if run:
        yield run


def score_shard(stage: StageOutput, encodings: Location, entry: FileEntry, corpus_mean: Float[np.ndarray, " d"]) -> dict[str, Any]:
    """Score one shard of the encodings into `stage`. Returns its receipt: num_episodes, num_pairs, and `damaged`, why, or ""."""
    name, most = PurePosixPath(entry.path).stem, max(entry.row_group_rows, default=1)
    try:
        with stage.shard_writer(name, most) as writer:
            writer.write("", SCORES.empty_table())
            num_pairs, group_rows = 0, iter(entry.row_group_rows)
            for _, block in read_blocks(encodings, entry, ["episode_id", "pooled"]):
                _check_pooled(encodings, entry, block, len(corpus_mean))
                scores = score_table(block, corpus_mean)
                num_pairs += len(scores["cosine"].combine_chunks().flatten())
                start = 0
                while start < scores.num_rows:  # a block is a run of whole row groups
                    num_rows = next(group_rows)
                    writer.write_group("", scores.slice(start, num_rows))
                    start += num_rows
            writer.stats = {"num_episodes": entry.num_rows, "num_pairs": num_pairs, "damaged": ""}
    except UnreadableShardError as error:
        with stage.shard_writer(name, most) as writer:
            writer.write("", SCORES.empty_table())
            for num_rows in entry.row_group_rows:
                writer.write_group("", _no_scores(num_rows))
            writer.stats = {"num_episodes": entry.num_rows, "num_pairs": 0, "damaged": error.damage}
    return dict(writer.stats)


def _check_pooled(folder: Location, entry: FileEntry, block: pa.Table, width: int) -> None:
    kind = block.schema.field("pooled").type
    if not (pa.types.is_list(kind) and pa.types.is_fixed_size_list(kind.value_type) and kind.value_type.list_size == width):
        raise UnreadableShardError(folder, entry.path, f"expected pooled embeddings of {width} numbers, got {kind}")
    missing = block["episode_id"].null_count + block["pooled"].null_count + block["pooled"].combine_chunks().flatten().null_count
    if missing:
        raise UnreadableShardError(folder, entry.path, f"{missing} values are missing")


def _no_scores(num_rows: int) -> pa.Table:
    """Rows that stand for a damaged shard, so that file and row group keep their index: no pictures, no pairs, no draws."""
    nothing = pa.ListArray.from_arrays(pa.array(np.zeros(num_rows + 1, np.int32)), pa.array([], pa.float32()))
    return pa.Table.from_arrays([pa.array([""] * num_rows), pa.array([0] * num_rows, pa.int32()), nothing, nothing], schema=SCORES)


def unscored(stage: StageOutput, source: Manifest) -> list[FileEntry]:
    """The shards of the encodings that are still to be scored: those without a receipt, and those that were damaged."""
    done = {name for name, stats in stage.receipts() if not stats["damaged"]}
    return [entry for entry in source.shards() if PurePosixPath(entry.path).stem not in done]


def finish_scores(stage: StageOutput, max_damaged_share: float | int) -> Manifest:
    """Write the manifest of the scores. Raises DataError when more than max_damaged_share of the episodes lie in damaged shards."""
    receipts = [stats for _, stats in stage.receipts()]
    damaged = [r for r in receipts if r["damaged"]]
    counts = {name: sum(r[name] for r in receipts) for name in ("num_episodes", "num_pairs")} | {
        "num_damaged_shards": len(damaged),
        "num_damaged_episodes": sum(r["num_episodes"] for r in damaged),
    }
    if counts["num_damaged_episodes"] > max_damaged_share * counts["num_episodes"]:
        raise DataError(
            f"pairs: {_damage(counts, [r['damaged'] for r in damaged])}, more than max_damaged_share = "
            f"{max_damaged_share:g} allows; restore them, run semantica encode again or pass --max-damaged-share"
        )
    return stage.finish(counts, {"damaged": [r["damaged"] for r in damaged]})


def damage_note(scores: Manifest) -> str:
    """One line that says what was lost in damaged shards and what to do; "" when nothing was."""
    damaged = scores.facts["damaged"]
    return (
        f"{_damage(scores.counts, damaged)}; restore them, delete the manifest of the scores and run semantica pairs again"
        if damaged
        else ""
    )


def _damage(counts: Mapping[str, int], damaged: Sequence[str]) -> str:
    lost, total = counts["num_damaged_episodes"], counts["num_episodes"]
    return (
        f"{lost} of {total} episodes ({lost / max(1, total):.2%}) are in {len(damaged)} damaged shards of the encodings, "
        f"the first {damaged[0]}"
    )
