"""python -m benchmarks.pairs: scoring all pairs of an episode and selecting a band, against polars and duckdb on the same Parquet.

Ours is the whole stage in one process: SHA-256 of the shards, plain and mean-centred cosine of every pair, both stored, then the
view of the band, read from what was stored. The peers store the same two scores and count the band from them; "count only" are
peers that compute the plain cosine alone and store nothing. Every run is a process of its own on one thread, interleaved, medians
of 3, seconds of the processor. Pairs within 1e-6 of an end of the band may be counted differently: the peers compute in float32.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.record import Measured, record

_LOW, _HIGH = 0.3, 0.9
_NEAR = 1e-6
_SINGLE = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
_ROWS_PER_GROUP = 64  # as semantica encode writes them
_SHARD_EPISODES = 10_000


def make_encodings(folder: Path, num_episodes: int, width: int) -> None:
    """Write encodings of 2 to 8 pictures a page, whose cosines fill the whole range, through the project's own writer."""
    from semantica.data.dataset import StageOutput
    from semantica.data.schemas import EPISODES, encodings_schema

    stage = StageOutput(folder, "encodings", {"store_tokens": False, "rows_per_group": _ROWS_PER_GROUP}, {})
    stage.open()
    total, count = np.zeros(width), 0
    schema = encodings_schema(width, None, None)
    for shard, first in enumerate(range(0, num_episodes, _SHARD_EPISODES)):
        random = np.random.default_rng(shard)
        sizes = random.integers(2, 9, min(_SHARD_EPISODES, num_episodes - first))
        offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
        page = np.repeat(random.standard_normal((len(sizes), width)), sizes, axis=0)
        own = random.standard_normal((len(page), width)) * random.uniform(0, 2, (len(page), 1))
        pooled = (page + own).astype(np.float16)
        names = pa.array([f"{first + i:032x}" for i in range(len(sizes))])
        nothing = EPISODES.field("images").type.value_type
        images = pa.ListArray.from_arrays(pa.array(np.zeros(len(sizes) + 1, np.int32)), pa.array([], nothing))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(pooled.reshape(-1)), width)
        columns = [names, names, pa.array(["benchmark"] * len(sizes)), images, pa.ListArray.from_arrays(offsets, vectors)]
        table = pa.Table.from_arrays(columns, schema=schema)
        stage.write_shard(f"shard-{shard:05d}", {"": table}, {}, _ROWS_PER_GROUP)
        total += pooled.astype(np.float64).sum(0)
        count += len(pooled)
    stage.finish({"num_episodes": num_episodes}, {"corpus_mean": (total / count).tolist()})


def ours(folder: Path) -> dict[str, Any]:
    """Score and select, as the stage's workers and its driver do."""
    from semantica.data.dataset import StageOutput, read_manifest
    from semantica.pairs.scores import finish_scores, score_shard, unscored
    from semantica.pairs.selection import BandConfig, select, selection_stage

    band = BandConfig(low=_LOW, high=_HIGH)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        out = Path(scratch)
        started = time.process_time()
        source = read_manifest(folder, "encodings")
        stage = StageOutput(out / "scores", "scores", {}, {"encodings": source.hash})
        stage.open()
        mean = np.array(source.facts["corpus_mean"], np.float32)
        for entry in unscored(stage, source):
            score_shard(stage, folder, entry, mean)
        finish_scores(stage, 0.0)
        scored = time.process_time() - started
        view = selection_stage(out / "scores", band, out / "selection")
        view.open()
        counts = select(view, out / "scores", band).counts
        seconds = time.process_time() - started
    return {"seconds": seconds, "score_seconds": scored, "pairs": counts["num_pairs"], "kept": counts["num_pairs_kept"], "slack": 0}


def with_polars(folder: Path, stored: bool) -> dict[str, Any]:
    """Pictures one a row, joined with themselves within an episode; the streaming engine."""
    import polars as pl

    mean = _corpus_mean(folder)
    started = time.process_time()
    images = (
        pl.scan_parquet(folder / "*.parquet")
        .select("episode_id", "pooled")
        .with_row_index("episode")
        .explode("pooled")
        .with_row_index("image")
        .with_columns(pl.col("pooled").cast(pl.Array(pl.Float32, len(mean))))
        .with_columns(length=pl.col("pooled").arr.dot("pooled").sqrt())
    )
    dot = pl.col("pooled").arr.dot(pl.col("pooled_right"))
    columns = {"cosine": dot / (pl.col("length") * pl.col("length_right"))}
    if stored:
        # (a - m)(b - m) = ab - am - bm + mm: one product a pair serves both scores
        m = pl.lit(pl.Series([mean], dtype=pl.Array(pl.Float32, len(mean)))).first()
        images = images.with_columns(along=pl.col("pooled").arr.dot(m))
        images = images.with_columns(centred=(pl.col("length") ** 2 - 2 * pl.col("along") + float(np.dot(mean, mean))).sqrt())
        shifted = dot - pl.col("along") - pl.col("along_right") + float(np.dot(mean, mean))
        columns["centred_cosine"] = shifted / (pl.col("centred") * pl.col("centred_right"))
    scored = images.join(images, on="episode").filter(pl.col("image") < pl.col("image_right"))
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        if stored:
            scored.select("episode_id", "image", "image_right", **columns).sink_parquet(Path(scratch) / "scores.parquet")
            view = pl.scan_parquet(Path(scratch) / "scores.parquet")
        else:
            view = scored.select(**columns)
        cosine = pl.col("cosine")
        near = ((cosine - _LOW).abs() < _NEAR) | ((cosine - _HIGH).abs() < _NEAR)
        counts = view.select(pairs=pl.len(), kept=cosine.is_between(_LOW, _HIGH).sum(), slack=near.sum()).collect(
            engine="streaming"
        )
        seconds = time.process_time() - started
    return {"seconds": seconds, **counts.to_dicts()[0]}


# (a - m)(b - m) = ab - am - bm + mm: one product a pair serves both scores; a picture's own products are made once.
_JOINED = """
    WITH unnested AS (
        SELECT episode_id, generate_subscripts(pooled, 1) AS i, unnest(pooled)::FLOAT[{width}] AS v FROM read_parquet('{files}')
    ), images AS (
        SELECT episode_id, i, v, array_inner_product(v, v) AS vv, {along} AS vm FROM unnested
    ), products AS (
        SELECT a.episode_id, a.i AS i, b.i AS j, array_inner_product(a.v, b.v) AS ab, a.vv AS aa, b.vv AS bb, a.vm AS am, b.vm AS bm
        FROM images a JOIN images b ON a.episode_id = b.episode_id AND a.i < b.i
    )
    SELECT episode_id, i, j, ab / sqrt(aa * bb) AS cosine {centred} FROM products
"""
_NUMBERED = """
    WITH first AS (
        SELECT episode_id, pooled, unnest(range(1, len(pooled))) AS i FROM read_parquet('{files}')
    ), numbered AS (
        SELECT episode_id, pooled, i, unnest(range(i + 1, len(pooled) + 1)) AS j FROM first
    ), vectors AS (
        SELECT episode_id, i, j, pooled[i]::FLOAT[{width}] AS v, pooled[j]::FLOAT[{width}] AS w FROM numbered
    ), products AS (
        SELECT episode_id, i, j, array_inner_product(v, w) AS ab, array_inner_product(v, v) AS aa, array_inner_product(w, w) AS bb,
               {along} AS am, {along_other} AS bm FROM vectors
    )
    SELECT episode_id, i, j, ab / sqrt(aa * bb) AS cosine {centred} FROM products
"""


def with_duckdb(folder: Path, stored: bool, query: str) -> dict[str, Any]:
    """DuckDB's own products of arrays, over pairs made by `query`."""
    import duckdb

    mean = _corpus_mean(folder)
    m, mm = f"{mean}::FLOAT[{len(mean)}]", f"{float(np.dot(mean, mean))}::FLOAT"
    names = {
        "along": f"array_inner_product(v, {m})" if stored else "0",
        "along_other": f"array_inner_product(w, {m})" if stored else "0",
        "centred": f", (ab - am - bm + {mm}) / sqrt((aa - 2 * am + {mm}) * (bb - 2 * bm + {mm})) AS centred_cosine"
        if stored
        else "",
    }
    connection = duckdb.connect(config={"threads": 1})
    started = time.process_time()
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        source = "(" + query.format(width=len(mean), files=f"{folder}/*.parquet", **names) + ")"
        if stored:
            connection.execute(f"COPY {source} TO '{scratch}/scores.parquet' (COMPRESSION zstd)")
            source = f"'{scratch}/scores.parquet'"
        pairs, kept, slack = connection.execute(
            f"""SELECT count(*), count(*) FILTER (cosine BETWEEN {_LOW} AND {_HIGH}),
            count(*) FILTER (abs(cosine - {_LOW}) < {_NEAR} OR abs(cosine - {_HIGH}) < {_NEAR}) FROM {source}"""
        ).fetchall()[0]
        seconds = time.process_time() - started
    return {"seconds": seconds, "pairs": pairs, "kept": kept, "slack": slack}


_RUNS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ours": ours,
    "polars": lambda folder: with_polars(folder, stored=True),
    "duckdb": lambda folder: with_duckdb(folder, True, _JOINED),
    "duckdb, no join": lambda folder: with_duckdb(folder, True, _NUMBERED),
    "polars, count only": lambda folder: with_polars(folder, stored=False),
    "duckdb, count only": lambda folder: with_duckdb(folder, False, _JOINED),
    "duckdb, no join, count only": lambda folder: with_duckdb(folder, False, _NUMBERED),
}


def _corpus_mean(folder: Path) -> list[float]:
    mean: list[float] = json.loads((folder / "manifest.json").read_text())["facts"]["corpus_mean"]
    return mean


def _in_child(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.pairs", "--child", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **_SINGLE})
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _child(name: str, folder: Path, size: str) -> dict[str, Any]:
    """What one run measured, with the peak memory of its process in MiB."""
    import pyarrow.parquet  # noqa: F401  (imports are not timed)

    if name == "make":
        num_episodes, _, width = size.partition("x")
        make_encodings(folder, int(num_episodes), int(width))
        return {}
    pa.set_cpu_count(1)
    _RUNS[name](folder.with_name("small"))  # what a process does once is not timed either
    result = _RUNS[name](folder)
    status = Path("/proc/self/status").read_text()
    return {**result, "peak_mb": int(status.partition("VmHWM:")[2].split()[0]) / 1024}


def _timed(folder: Path, names: Sequence[str], repeats: int) -> dict[str, dict[str, Any]]:
    """Of each run its medians over `repeats` interleaved rounds, after checking that all found the same pairs."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            result = _in_child(name, str(folder), "")
            print(f"{folder.name:>12}  {name:<28} {result['seconds']:7.2f} s {result['peak_mb']:7.0f} MiB", flush=True)
            found[name].append(result)
    own = found[names[0]][0]
    for name, results in found.items():
        for other in results:
            if other["pairs"] != own["pairs"] or abs(other["kept"] - own["kept"]) > other["slack"]:
                raise SystemExit(f"{name} found other pairs: {other} against {own}")
    return {name: {k: statistics.median(r[k] for r in results) for k in results[0]} for name, results in found.items()}


def _ratios(folder: Path, num_episodes: int, width: int) -> list[Measured]:
    times = _timed(folder, list(_RUNS), repeats=3)
    own = times["ours"]["seconds"]
    label = f"{num_episodes:.0e} episodes, D = {width}"
    measured = [Measured(name=f"score and band, {label}", figure=num_episodes / own, unit="episodes/CPU s")]
    for name, result in times.items():
        if name == "ours":
            continue
        ratio = result["seconds"] / own
        same_work = "count only" not in name
        measured.append(
            Measured(
                name=f"speed of ours, {label}",
                figure=ratio,
                unit="x",
                target=">= 1 x" if same_work else None,
                holds=ratio >= 1 if same_work else None,
                peer=f"{name} (one thread each)",
            )
        )
    return measured


def _scaling(small: Path, large: Path, factor: int) -> list[Measured]:
    fewer, more = (_timed(folder, ["ours"], repeats=3)["ours"] for folder in (small, large))
    per_episode, memory = more["seconds"] / fewer["seconds"] / factor, more["peak_mb"] / fewer["peak_mb"]
    return [
        Measured(name="10^6 episodes, D = 64", figure=more["seconds"], unit="CPU s"),
        Measured(
            name="CPU time an episode",
            figure=per_episode,
            unit="x",
            target="<= 1.2 x",
            holds=per_episode <= 1.2,
            peer="10^5 episodes",
        ),
        Measured(name="peak memory", figure=more["peak_mb"], unit="MiB"),
        Measured(name="peak memory", figure=memory, unit="x", target="<= 1.1 x", holds=memory <= 1.1, peer="10^5 episodes"),
    ]


def main() -> None:
    """Measure and record everything."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = {}
        for name, num_episodes, width in (
            ("small", 200, 64),
            ("1e5x64", 10**5, 64),
            ("1e5x384", 10**5, 384),
            ("1e6x64", 10**6, 64),
        ):
            folders[name] = Path(scratch) / name
            _in_child("make", str(folders[name]), f"{num_episodes}x{width}")
        measured = _ratios(folders["1e5x64"], 10**5, 64) + _ratios(folders["1e5x384"], 10**5, 384)
        measured += _scaling(folders["1e5x64"], folders["1e6x64"], 10)
    print(record("pairs", measured))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(_child(sys.argv[2], Path(sys.argv[3]), sys.argv[4])))
    else:
        main()
