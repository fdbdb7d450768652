"""python -m benchmarks.orchestration: what Ray costs each stage, against a plain loop over the same shards by the pure functions.

A round is two fresh processes one after the other, in an order that alternates: the loop does ingest, encode and score, one shard
after the other; then Ray does, with one CPU and one actor. Both write the same files, byte for byte (checked). A shard is finished
when its receipt appears, so the receipts' times give both figures of a run: *first shard*, from the start of the stage, and *a
shard, steady*, the mean time from one receipt to the next. Medians over the rounds, one thread in every process.

Ray itself is started once in a run and timed apart. A shard of ingest or encode is half a second of work; of real ones, with 256
pages, minutes, over which the same milliseconds are spread.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.corpus import make_encoder, make_tree
from benchmarks.record import Measured, record

NUM_SHARDS, PAGES_A_SHARD, PICTURES_A_PAGE, ROUNDS = 40, 5, 6, 3
WIDTH, NUM_LAYERS, IMAGE_PX, BATCH = 192, 2, 224, 32
SCORED_EPISODES, SCORED_WIDTH = 10_000 * NUM_SHARDS, 64  # 10,000 a shard
MIN_ENCODE = 0.95
_STAGES = {"ingest": "episodes", "encode": "encodings", "score": "scores"}
_SINGLE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def _configs(top: Path) -> tuple[Any, Any]:
    from semantica.encoders.settings import EncodeConfig, EncoderConfig
    from semantica.episodes.ingest import IngestConfig
    from semantica.episodes.pages import ReadConfig

    encoder = EncoderConfig(weights=str(top / "encoder"), image_px=IMAGE_PX)
    ingest = IngestConfig(read=ReadConfig(pages_per_part=PAGES_A_SHARD), census_mb=1)
    return ingest, EncodeConfig(encoder=encoder, batch_size=BATCH)


def plain_stages(top: Path, out: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """(stage, what runs it) for every stage as a loop in this process; each needs the one before."""
    from semantica.config import to_dict
    from semantica.data.dataset import StageOutput, read_manifest
    from semantica.encoders.encoder import load_encoder
    from semantica.encoders.shard import encode_shard
    from semantica.encoders.totals import finish_encodings, shards_of
    from semantica.pairs.scores import finish_scores, score_shard, unscored

    ingest_config, encode_config = _configs(top)

    def encode() -> None:
        source = read_manifest(out / "episodes", "episodes")
        stage = StageOutput(out / "encodings", "encodings", to_dict(encode_config), {"episodes": source.hash})
        stage.open()
        encoder = load_encoder(encode_config.encoder)
        for shard in shards_of(source, ("", "held_out")):
            encode_shard(stage, out / "episodes", shard, encoder, encode_config)
        finish_encodings(stage, source, 0.0)

    def score() -> None:
        import numpy as np

        source = read_manifest(top / "scored", "encodings")
        stage = StageOutput(out / "scores", "scores", {}, {"encodings": source.hash})
        stage.open()
        mean = np.array(source.facts["corpus_mean"], np.float32)
        for entry in unscored(stage, source):
            score_shard(stage, top / "scored", entry, mean)
        finish_scores(stage, 0.0)

    yield "ingest", lambda: _plain_ingest(ingest_config, top / "crawl", out / "episodes")
    yield "encode", encode
    yield "score", score


def _plain_ingest(config: Any, root: Path, out: Path) -> None:
    from collections import Counter

    import pyarrow as pa

    from semantica.config import to_dict
    from semantica.data.dataset import StageOutput
    from semantica.data.schemas import EPISODES
    from semantica.episodes.census import Census
    from semantica.episodes.decoder import open_decoder
    from semantica.episodes.ingest import count_pictures, ingest_pages
    from semantica.episodes.quarantine import quarantine_table
    from semantica.episodes.sources import SOURCES

    source = SOURCES[config.source]
    parts = source.parts(root, config.read)
    stage = StageOutput(out, "episodes", to_dict(config))
    stage.open()
    census, totals = Census(config.census_mb), Counter[str]()
    for part in parts:
        census.add(count_pictures(source.pages(root, part, config.read), config))
    with open_decoder(config.image) as decode:
        for index, part in enumerate(parts):
            pages = list(ingest_pages(source.pages(root, part, config.read), census, config, decode))
            counts = sum((page.counts() for page in pages), Counter[str]())
            with stage.shard_writer(f"part-{index:05d}", config.rows_per_group) as writer:
                writer.write("", pa.Table.from_pylist([p.train for p in pages if p.train], schema=EPISODES))
                writer.write("held_out", pa.Table.from_pylist([p.held_out for p in pages if p.held_out], schema=EPISODES))
                writer.write("quarantine", quarantine_table([row for p in pages for row in p.refused]))
                writer.stats = dict(sorted(counts.items()))
            totals.update(counts)
    stage.finish(totals, {"pictures": []})


def ray_stages(top: Path, out: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """(stage, what runs it) for every stage as the jobs run it, on one CPU."""
    from semantica.distributed.encode import encode
    from semantica.distributed.ingest import ingest
    from semantica.distributed.pairs import score
    from semantica.distributed.runtime import ClusterConfig, Runtime
    from semantica.tracking import TrackingConfig

    cluster = ClusterConfig(num_cpus=1, num_actors=1, num_workers=1)
    runtime = Runtime(cluster=cluster, tracking=TrackingConfig(uri="off"))
    ingest_config, encode_config = _configs(top)
    yield "ingest", lambda: ingest(ingest_config, root=top / "crawl", out=out / "episodes", runtime=runtime)
    yield "encode", lambda: encode(encode_config, episodes=out / "episodes", out=out / "encodings", runtime=runtime)
    yield "score", lambda: score(encodings=top / "scored", out=out / "scores", runtime=runtime)


def _times(stages: Iterator[tuple[str, Callable[[], object]]], out: Path) -> dict[str, float]:
    """Seconds by "STAGE first" and "STAGE steady"."""
    found = {}
    for name, run in stages:
        started = time.time()  # the clock of the file system
        run()
        written = sorted(path.stat().st_mtime for path in (out / _STAGES[name] / "_shards").glob("*.json"))
        if len(written) != NUM_SHARDS:
            raise SystemExit(f"{name}: expected {NUM_SHARDS} shards, got {len(written)}")
        found[f"{name} first"] = written[0] - started
        found[f"{name} steady"] = (written[-1] - written[0]) / (len(written) - 1)
    return found


def _child(how: str, top: Path, out: Path) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    if how == "plain":
        return _times(plain_stages(top, out), out)
    from semantica.distributed.runtime import ClusterConfig
    from semantica.distributed.session import ray_session, shared_ray

    with shared_ray():
        started = time.time()
        with ray_session(ClusterConfig(num_cpus=1, num_workers=1)):
            ready = time.time() - started
        return {"start of Ray": ready, **_times(ray_stages(top, out), out)}


def _files(folder: Path) -> list[tuple[str, str]]:
    """Path and SHA-256 of every file of a dataset."""
    return [(entry["path"], entry["sha256"]) for entry in json.loads((folder / "manifest.json").read_text())["files"]]


def _rounds(top: Path) -> dict[str, list[dict[str, float]]]:
    """Of each way the times of its runs."""
    found: dict[str, list[dict[str, float]]] = {"plain": [], "ray": []}
    for number in range(ROUNDS):
        for how in ("plain", "ray") if number % 2 == 0 else ("ray", "plain"):
            command = [sys.executable, "-m", "benchmarks.orchestration", "--child", how, str(top), str(top / f"{how}-{number}")]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **_SINGLE})
            found[how].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{how:<5} " + ", ".join(f"{name} {value:.3f} s" for name, value in found[how][-1].items()), flush=True)
        for folder in _STAGES.values():
            if _files(top / f"plain-{number}" / folder) != _files(top / f"ray-{number}" / folder):
                raise SystemExit(f"{folder}: expected the same bytes from the loop and from Ray")
    return found


def _figures(name: str, plain: list[dict[str, float]], ray: list[dict[str, float]]) -> list[Measured]:
    def median(runs: list[dict[str, float]], figure: str) -> float:
        return statistics.median(run[f"{name} {figure}"] for run in runs)

    speed = statistics.median(p[f"{name} steady"] / r[f"{name} steady"] for p, r in zip(plain, ray, strict=True))
    more = statistics.median(r[f"{name} steady"] - p[f"{name} steady"] for p, r in zip(plain, ray, strict=True))
    wanted = MIN_ENCODE if name == "encode" else None
    return [
        Measured(name=f"{name}, first shard", figure=median(plain, "first"), unit="s", peer="the loop"),
        Measured(name=f"{name}, first shard", figure=median(ray, "first"), unit="s", peer="Ray"),
        Measured(name=f"{name}, a shard, steady", figure=median(plain, "steady"), unit="s", peer="the loop"),
        Measured(name=f"{name}, a shard, steady, through Ray", figure=1000 * more, unit="ms more", peer="the loop"),
        Measured(
            name=f"{name}, steady speed through Ray",
            figure=speed,
            unit="x",
            target=f">= {wanted}" if wanted else None,
            holds=speed >= wanted if wanted else None,
            peer="the loop",
        ),
    ]


def main() -> None:
    """Measure and record everything."""
    from benchmarks.pairs import make_encodings

    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch)
        make_tree(top / "crawl", NUM_SHARDS * PAGES_A_SHARD, PICTURES_A_PAGE)
        make_encoder(top / "encoder", width=WIDTH, num_layers=NUM_LAYERS, image_px=IMAGE_PX)
        make_encodings(top / "scored", SCORED_EPISODES, SCORED_WIDTH)
        found = _rounds(top)
    measured = [Measured(name="start of Ray", figure=statistics.median(run["start of Ray"] for run in found["ray"]), unit="s")]
    for name in _STAGES:
        measured += _figures(name, found["plain"], found["ray"])
    print(record("orchestration", measured))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(_child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))))
    else:
        main()
