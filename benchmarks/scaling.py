"""python -m benchmarks.scaling: stages on a simulated cluster of 1, 2, 4 and 8 nodes, each with one CPU of Ray's, on this machine.

Two regimes, which say different things. *Waiting*: a shard sleeps instead of computing, as a host waits for its GPU, and writes its
receipt; everything else is the stages' own shell (Ray Data, `distributed.stage`, `StageOutput`). Nodes that only wait do not share
the cores of this machine, so this shows how orchestration scales, and with shards of no work at all where it stops. *Real*: ingest,
encode and score do their real work, which the cores of this machine share: no speed-up beyond their number is to be expected, and
what is lost beyond it is what more nodes cost.

Speed is that of the steady part: from when every node has done a shard, or a third of the shards are done, to the last shard.
--only waiting or --only real does one of them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.record import Measured, record
from benchmarks.waiting import Nodes, receipts, speed, wait_stage

NODES = (8, 4, 2, 1)
REAL_NODES = (4, 2, 1)  # more of them share two cores no better
WAITS_S, SHARDS_A_NODE = 0.5, 12
EMPTY_SHARDS = 150
REAL_SHARDS, PAGES_A_SHARD, PICTURES_A_PAGE = 9, 4, 6
SCORED_EPISODES, SCORED_WIDTH = 10_000 * REAL_SHARDS, 192  # 10,000 a shard
MIN_EFFICIENCY = 0.8
_SHELLS = ("tasks", "actors")  # of Ray Data: what ingest and pairs use, and what encode and generate use


def _waiting(top: Path) -> Iterator[Measured]:
    with Nodes(NODES[0]) as nodes:
        wait_stage(top / "warm", 3 * NODES[0], 1.0, NODES[0], in_pool=False)
        yield from _empty(top)
        for number in NODES:
            nodes.shrink(number)
            for how in _SHELLS:
                folder = top / f"{how}-{number}"
                waited = wait_stage(folder, SHARDS_A_NODE * number, WAITS_S, number, in_pool=how == "actors")
                name, target = f"waiting {WAITS_S:g} s a shard, {how}, {number} nodes", f">= {MIN_EFFICIENCY:g}"
                share, most = waited.shards_s * WAITS_S / number, f"{number / WAITS_S:g}, all nodes all the time"
                print(f"{name}: {waited.shards_s:.2f} shards/s of {most}; all nodes after {waited.joined_s:.1f} s", flush=True)
                yield Measured(name=name, figure=waited.shards_s, unit="shards/s", peer=most)
                yield Measured(name=f"{name}, until all have done a shard", figure=waited.joined_s, unit="s")
                yield Measured(name=name, figure=share, unit="of the nodes' time", target=target, holds=share >= MIN_EFFICIENCY)


def _empty(top: Path) -> Iterator[Measured]:
    """Shards of no work: what the shell itself takes."""
    for how in _SHELLS:
        waited = wait_stage(top / f"empty-{how}", EMPTY_SHARDS, 0.0, NODES[0], in_pool=how == "actors")
        yield Measured(name=f"no work, {how}, {NODES[0]} nodes", figure=waited.shards_s, unit="shards/s")
        yield Measured(name=f"no work, {how}, {NODES[0]} nodes", figure=1000 / waited.shards_s, unit="ms a shard")
        print(f"no work, {how}: {waited.shards_s:.1f} shards/s", flush=True)


def _real(top: Path) -> Iterator[Measured]:
    from benchmarks.corpus import make_encoder, make_tree
    from benchmarks.pairs import make_encodings

    make_tree(top / "crawl", REAL_SHARDS * PAGES_A_SHARD, PICTURES_A_PAGE)
    make_encoder(top / "encoder", width=192, num_layers=2, image_px=224)
    make_encodings(top / "scored", SCORED_EPISODES, SCORED_WIDTH)
    found: dict[str, dict[int, float]] = {"ingest": {}, "encode": {}, "score": {}}
    with Nodes(REAL_NODES[0]) as nodes:
        for number in REAL_NODES:
            nodes.shrink(number)
            for stage, shards_s in _real_stages(top, top / f"nodes-{number}", number):
                found[stage][number] = shards_s
                print(f"real {stage}, {number} nodes: {shards_s:.2f} shards/s", flush=True)
    for stage, speeds in found.items():
        for number, shards_s in speeds.items():
            name = f"real work, {stage}, {number} nodes on {os.cpu_count()} cores"
            yield Measured(name=name, figure=shards_s, unit="shards/s")
            yield Measured(name=name, figure=shards_s / speeds[REAL_NODES[-1]], unit="x", peer="one node")


def _real_stages(top: Path, out: Path, number: int) -> Iterator[tuple[str, float]]:
    """(stage, shards a second) of the real stages, each after the one before."""
    from semantica.distributed.encode import encode
    from semantica.distributed.ingest import ingest
    from semantica.distributed.pairs import score
    from semantica.distributed.runtime import ClusterConfig, Runtime
    from semantica.encoders.settings import EncodeConfig, EncoderConfig
    from semantica.episodes.ingest import IngestConfig
    from semantica.episodes.pages import ReadConfig
    from semantica.tracking import TrackingConfig

    cluster = ClusterConfig(num_actors=number, num_workers=1)
    runtime = Runtime(cluster=cluster, tracking=TrackingConfig(uri="off"))
    reading = IngestConfig(read=ReadConfig(pages_per_part=PAGES_A_SHARD), census_mb=0)
    encoding = EncodeConfig(encoder=EncoderConfig(weights=str(top / "encoder"), image_px=224), batch_size=24)
    ingest(reading, root=top / "crawl", out=out / "episodes", runtime=runtime)
    yield "ingest", speed(receipts(out / "episodes"))
    encode(encoding, episodes=out / "episodes", out=out / "encodings", runtime=runtime)
    yield "encode", speed(receipts(out / "encodings"))
    score(encodings=top / "scored", out=out / "scores", runtime=runtime)
    yield "score", speed(receipts(out / "scores"))


def main() -> None:
    """Measure and record everything."""
    only = sys.argv[sys.argv.index("--only") + 1] if "--only" in sys.argv else ""
    for regime, measure in (("waiting", _waiting), ("real", _real)):
        if only in ("", regime):
            with tempfile.TemporaryDirectory() as scratch:
                print(record(f"scaling-{regime}", list(measure(Path(scratch)))))


if __name__ == "__main__":
    main()
