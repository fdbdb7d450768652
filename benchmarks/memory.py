"""python -m benchmarks.memory: the peak memory of ingest, encode and pairs when the pages of a crawl grow tenfold.

Two ways to grow. *More shards*: a folder tree in parts of PAGES_A_SHARD pages. *One long shard*: a single tar, which is one part
and so one shard of every stage, all of it the work of one process. Every stage runs alone, with a Ray of its own, on 2 CPUs.

The figure of a process is the largest value of RssAnon + RssFile in /proc/PID/status, read every 20 ms: what it allocated and the
files it maps, libraries included, without the shared memory of Ray's object store (RssShmem). The figure of a role is that of its
largest process: the driver, Ray's workers, and the children of the workers that decode pictures. Ray's own are not counted.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.corpus import make_encoder, make_tar, make_tree
from benchmarks.record import Measured, record

NUM_PAGES, FACTOR, PICTURES_A_PAGE, PAGES_A_SHARD, ROWS_A_GROUP = 45, 10, 6, 15, 8
WIDTH, NUM_LAYERS, IMAGE_PX, BATCH = 192, 1, 224, 32  # 257 tokens, 99 KB a picture
CENSUS_MB = 1  # the census fills its memory as pictures come, up to this
MAX_RATIO = 1.1
_STAGES = ("ingest", "encode", "pairs")
_SAMPLE_SECONDS, _SEARCH_SECONDS = 0.02, 0.2
_MIB = 1024  # KiB, the unit of /proc


@dataclass
class _Watched:
    """A process and the most that was seen of it, in KiB."""

    role: str
    peak: int = 0


def peaks(command: list[str]) -> dict[str, float]:
    """MiB of the largest process of each role while the command runs. Raises CalledProcessError when it fails."""
    watched: dict[int, _Watched] = {}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as root:
        searched = 0.0
        while root.poll() is None:
            if time.monotonic() - searched > _SEARCH_SECONDS:
                searched = time.monotonic()
                watched.update({pid: _Watched(role) for pid, role in _roles(root.pid) if pid not in watched})
            for pid, process in watched.items():
                process.peak = max(process.peak, _own_memory(pid))
            time.sleep(_SAMPLE_SECONDS)
    if root.returncode:
        raise subprocess.CalledProcessError(root.returncode, command)
    roles = {process.role for process in watched.values()}
    return {role: max(p.peak for p in watched.values() if p.role == role) / _MIB for role in roles}


def _roles(root: int) -> Iterator[tuple[int, str]]:
    """(process id, role) of the command and of all below it that have one."""
    yield root, "driver"
    for process in psutil.Process(root).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            if line.startswith("ray::"):
                yield process.pid, "workers"
            elif "semantica.episodes.decoder_child" in line:
                yield process.pid, "decoders"


def _own_memory(pid: int) -> int:
    """RssAnon + RssFile in KiB; 0 when the process has ended."""
    with suppress(OSError):
        lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        fields = {name: value for name, _, value in lines}
        if "RssAnon" in fields:  # a process that has ended and waits for its parent has none
            return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssFile"))
    return 0


def run_stage(name: str, crawl: Path, folder: Path, encoder: Path) -> None:
    """One stage, as jobs.NAME runs it. A crawl that is a file is a tar."""
    from semantica.distributed.encode import encode
    from semantica.distributed.ingest import ingest
    from semantica.distributed.pairs import pairs
    from semantica.distributed.runtime import ClusterConfig, Runtime
    from semantica.encoders.settings import EncodeConfig, EncoderConfig
    from semantica.episodes.ingest import IngestConfig
    from semantica.episodes.pages import ReadConfig
    from semantica.pairs.selection import BandConfig
    from semantica.tracking import TrackingConfig

    runtime = Runtime(cluster=ClusterConfig(num_cpus=2), tracking=TrackingConfig(uri="off"))
    if name == "ingest":
        ingest_config = IngestConfig(
            source="webdataset" if crawl.is_file() else "folder",
            read=ReadConfig(pages_per_part=PAGES_A_SHARD),
            census_mb=CENSUS_MB,
            rows_per_group=ROWS_A_GROUP,
        )
        ingest(ingest_config, root=crawl, out=folder / "episodes", runtime=runtime)
    elif name == "encode":
        encoder_config = EncoderConfig(weights=str(encoder), image_px=IMAGE_PX)
        encode_config = EncodeConfig(encoder=encoder_config, batch_size=BATCH, rows_per_group=ROWS_A_GROUP)
        encode(encode_config, episodes=folder / "episodes", out=folder / "encodings", runtime=runtime)
    else:
        band = BandConfig(low=-1.0, high=1.0)
        pairs(band, encodings=folder / "encodings", out=folder / "selection", scores=None, runtime=runtime)


def _measure(crawl: Path, folder: Path, encoder: Path) -> dict[str, dict[str, float]]:
    """MiB by stage and role, after checking that no picture was lost on the way."""
    from semantica.data.dataset import read_manifest

    found = {}
    for name in _STAGES:
        command = [sys.executable, "-m", "benchmarks.memory", "--child", name, str(crawl), str(folder), str(encoder)]
        started = time.monotonic()
        found[name] = peaks(command)
        shown = ", ".join(f"{role} {peak:.0f} MiB" for role, peak in sorted(found[name].items()))
        print(f"{folder.name:<22} {name:<7} {time.monotonic() - started:5.1f} s  {shown}", flush=True)
    counts = read_manifest(folder / "episodes", "episodes").counts
    if counts["num_quarantined"]:
        raise SystemExit(f"{folder.name}: expected every picture in an episode, got {counts}")
    return found


def _ratios(kind: str, fewer: Mapping[str, Mapping[str, float]], more: Mapping[str, Mapping[str, float]]) -> list[Measured]:
    measured = []
    for stage in _STAGES:
        for role, peak in sorted(more[stage].items()):
            name, ratio = f"{stage}, {role}, {kind}", peak / fewer[stage][role]
            measured += [
                Measured(name=name, figure=peak, unit="MiB"),
                Measured(
                    name=name,
                    figure=ratio,
                    unit="x",
                    target=f"<= {MAX_RATIO} x",
                    holds=ratio <= MAX_RATIO,
                    peer=f"{NUM_PAGES} pages, a tenth",
                ),
            ]
    return measured


def main() -> None:
    """Measure and record everything."""
    measured = []
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch)
        encoder = make_encoder(top / "encoder", width=WIDTH, num_layers=NUM_LAYERS, image_px=IMAGE_PX)
        for kind in ("more shards", "one long shard"):
            found = []
            for num_pages in (NUM_PAGES, FACTOR * NUM_PAGES):
                folder = top / f"{kind}, {num_pages} pages"
                make = make_tree if kind == "more shards" else make_tar
                crawl = make(folder / "crawl" / "pages.tar", num_pages, PICTURES_A_PAGE)
                found.append(_measure(crawl, folder, encoder))
            measured += _ratios(kind, *found)
    print(record("memory", measured))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_stage(sys.argv[2], *map(Path, sys.argv[3:6]))
    else:
        main()
