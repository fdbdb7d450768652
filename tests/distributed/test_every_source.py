"""Every source through the workers of ingest, in this process: real files in, every picture in one of the three tables."""

from __future__ import annotations

import pickle
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow.parquet as pq
import pytest
from crawls import CLASSES, CRAWLS, GOOD, PAGES, Found, imagenet_val, png

from semantica.config import to_dict
from semantica.data.dataset import StageOutput
from semantica.data.location import file_sha256
from semantica.distributed import ingest as stage_code
from semantica.episodes.census import Census, PageIds
from semantica.episodes.clean import image_id
from semantica.episodes.fetch import FetchConfig
from semantica.episodes.fetch.fetcher import Fetcher
from semantica.episodes.images import ImageConfig
from semantica.episodes.ingest import IngestConfig, is_held_out
from semantica.episodes.pages import Page, ReadConfig
from semantica.episodes.sources import SOURCES, label_sources


@contextmanager
def pictures_served() -> Iterator[int]:
    """The port of a server on loopback that has every picture of PAGES at /PAGE/NAME."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page, _, name = self.path.removeprefix("/").partition("/")
            body = PAGES.get(page, {}).get(name)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


async def on_loopback(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with pictures_served() as port, pytest.MonkeyPatch.context() as patch:
        # A public address is not there to test with: the fetcher is told that this one server is one.
        wall = {"resolve": on_loopback, "allowed": lambda address, where: where == port}
        patch.setattr(stage_code, "_fetcher", lambda config: Fetcher(config, **wall))
        yield port


def settings(source: str, port: int | None = None, **values: Any) -> IngestConfig:
    fetch = FetchConfig(contact="a@b.example", ports=(port or 80,), per_host_per_second=1000.0, max_retries=0)
    base: dict[str, Any] = {"fetch": fetch, "fetch_urls": port is not None, "image": ImageConfig(image_px=32, min_side_px=16)}
    base |= {  # this seed puts some pages of every source on each side
        "read": ReadConfig(pages_per_part=2),
        "census_mb": 1,
        "min_images": 1,
        "held_out_share": 0.5,
        "seed": 0,
    }
    return IngestConfig(**(base | {"source": source} | values))


def run(config: IngestConfig, root: Path, out: Path, *, backwards: bool = False) -> int:
    """The number of parts, after the passes of the stage over them."""
    parts = SOURCES[config.source].parts(root, config.read)
    stage = StageOutput(out, "episodes", to_dict(config))
    assert stage.open() is None
    shards = [stage_code.PartShard(f"part-{index:05d}", part) for index, part in enumerate(parts)]
    shards = pickle.loads(pickle.dumps(shards[::-1] if backwards else shards))  # noqa: S301 - as they travel
    if config.fetch_urls:
        for shard in shards:
            stage_code._FetchPart(config, root, stage, config.fetch)(shard)
    census = Census(config.census_mb)
    for shard in shards:
        census.add(PageIds.from_bytes(stage_code._CountPart(config, root, stage)(shard).read_bytes()))
    (out / stage_code._CENSUS / "all.npz").write_bytes(census.to_bytes())
    digest = file_sha256(out / stage_code._CENSUS / "all.npz")
    for shard in shards:
        stage_code._IngestPart(config, root, stage, digest)(shard)
    return len(parts)


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of the Parquet files directly in the folder."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def files(out: Path) -> dict[str, bytes]:
    """What is published: the tables and their receipts."""
    paths = [*out.glob("*.parquet"), *out.glob("[!_]*/*.parquet"), *out.glob("_shards/*.json")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def assert_every_picture_is_in_one_table(out: Path, found: Found) -> None:
    episodes = [*rows(out), *rows(out / "held_out")]
    accepted = [(row["page_url"], image["url"]) for row in episodes for image in row["images"]]
    refused = [(row["page_url"], row["url"]) for row in rows(out / "quarantine")]
    assert Counter(accepted + refused) == Counter((page, url) for page, urls in found.items() for url in urls)
    assert len({row["episode_id"] for row in episodes}) == len(episodes)


@pytest.mark.parametrize("source", SOURCES)
def test_every_picture_of_a_crawl_is_in_exactly_one_table(source: str, port: int, tmp_path: Path) -> None:
    config, root, out = settings(source, port), tmp_path / "crawl", tmp_path / "out"
    root.mkdir()
    found = CRAWLS[source](root, f"http://pictures.example:{port}")
    num_parts = run(config, root, out)
    assert_every_picture_is_in_one_table(out, found)

    assert Counter(row["reason"] for row in rows(out / "quarantine")) == {"duplicate": 4, "not_an_image": 4}
    train, held_out = rows(out), rows(out / "held_out")
    assert {row["source"] for row in train + held_out} == {source}
    assert sorted(row["page_url"] for row in train + held_out) == sorted(found)
    assert {row["page_url"] for row in held_out} == {page for page in found if is_held_out(Page(page, ()), "", config)}
    assert train
    assert held_out
    ids = {frozenset(image["image_id"] for image in row["images"]) for row in train + held_out}
    assert ids == {frozenset(image_id(pictures[name]) for name in GOOD) for pictures in PAGES.values()}

    assert num_parts > 1
    run(config, root, tmp_path / "again", backwards=True)
    assert files(tmp_path / "again") == files(out)
    assert len(files(out)) == 4 * num_parts


@pytest.mark.parametrize("source", sorted(label_sources()))
def test_a_class_is_cut_into_label_episodes_that_are_all_on_its_side(source: str, tmp_path: Path) -> None:
    config, root, out = (
        settings(source, read=ReadConfig(pages_per_part=2, images_per_label=2)),
        tmp_path / "crawl",
        tmp_path / "out",
    )
    root.mkdir()
    found = CRAWLS[source](root, "")
    run(config, root, out)
    assert_every_picture_is_in_one_table(out, found)
    episodes = [*rows(out), *rows(out / "held_out")]
    assert {row["page_url"] for row in episodes} == set(CLASSES)
    assert {row["page_url"] for row in rows(out)}.isdisjoint(row["page_url"] for row in rows(out / "held_out"))
    # Five pictures of a class make chunks of 2, 2 and 1; the one that is broken may be all of its chunk.
    assert all(2 <= chunks <= 3 for chunks in Counter(row["page_url"] for row in episodes).values())
    assert max(len(row["images"]) for row in episodes) == 2


# Of each format of files: the file that is damaged, and the part of the crawl that it is.
HARMED = {
    "warc": ("crawl-1.warc.gz", "part-00001"),
    "obelics": ("train-00001.parquet", "part-00001"),
    "omnicorpus": ("train-00001.parquet", "part-00001"),
    "mmc4": ("docs_no_face_shard_1_v2.jsonl.gz", "part-00001"),
    "wit": ("wit_v1.train.all-00001-of-00002.tsv.gz", "part-00001"),
    "webdataset": ("00001.tar", "part-00001"),
    "lsun": ("n00000003_train_lmdb/data.mdb", "part-00002"),
    "imagenet-train": ("ILSVRC2012_img_train.tar", "part-00002"),  # its third class tar; the fourth is never found
}


@pytest.mark.parametrize(
    ("source", "damage"),
    [
        (source, damage)
        for source in HARMED
        for damage in ("cut", "garbage", "empty")
        if source != "imagenet-train" or damage == "cut"
    ],
)
def test_a_damaged_file_is_one_row_and_the_other_parts_are_what_they_were(source: str, damage: str, tmp_path: Path) -> None:
    config, root = settings(source), tmp_path / "crawl"
    root.mkdir()
    CRAWLS[source](root, "http://pictures.example")
    run(config, root, tmp_path / "whole")
    name, part = HARMED[source]
    data = (root / name).read_bytes()
    (root / name).write_bytes({"cut": data[: len(data) * 6 // 10], "garbage": b"garbage\n" * 2000, "empty": b""}[damage])
    num_parts = run(config, root, tmp_path / "out")

    [row] = pq.read_table(tmp_path / "out" / "quarantine" / f"{part}.parquet").to_pylist()
    assert (row["page_url"], row["url"], row["reason"]) == (name, "", "damaged_file")
    assert row["detail"]
    assert pq.read_metadata(tmp_path / "out" / f"{part}.parquet").num_rows == 0
    assert pq.read_metadata(tmp_path / "out" / "held_out" / f"{part}.parquet").num_rows == 0
    whole, now = files(tmp_path / "whole"), files(tmp_path / "out")
    assert {Path(path).name.partition(".")[0] for path in now if now[path] != whole.get(path)} == {part}
    assert len(now) == 4 * num_parts


def test_a_damaged_validation_tar_is_one_row_for_each_of_its_parts(tmp_path: Path) -> None:
    config, root, out = settings("imagenet-val"), tmp_path / "crawl", tmp_path / "out"
    root.mkdir()
    imagenet_val(root, "")
    tar = root / "ILSVRC2012_img_val.tar"
    tar.write_bytes(tar.read_bytes()[:50_000])
    assert run(config, root, out) == 2
    assert [(row["page_url"], row["reason"]) for row in rows(out / "quarantine")] == [(tar.name, "damaged_file")] * 2
    assert rows(out) + rows(out / "held_out") == []


def test_a_folder_that_is_filled_anew_is_cleaned_by_its_own_census(tmp_path: Path) -> None:
    for page in range(16):
        (tmp_path / "crawl" / f"{page:02d}").mkdir(parents=True)
        for name, seed in (("0.png", (page, 0)), ("1.png", (page, 1)), ("shared.png", (1000, page // 2))):
            (tmp_path / "crawl" / f"{page:02d}" / name).write_bytes(png(*seed))
    run(settings("folder", seed=0), tmp_path / "crawl", tmp_path / "out")
    shutil.rmtree(tmp_path / "out")  # as --fresh does; the process is the same
    run(settings("folder", seed=1), tmp_path / "crawl", tmp_path / "out")
    run(settings("folder", seed=1), tmp_path / "crawl", tmp_path / "other")
    assert files(tmp_path / "out") == files(tmp_path / "other")
