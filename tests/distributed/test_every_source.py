"""Every source through the workers of ingest, in this process: real files in, every picture in one of the three tables.

The crawls are small and in the real formats. A page shows three good pictures, a copy of the first and a file that is no picture;
where the format allows, the third is only named by URL and comes from a server on loopback.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import random
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, TypeAlias

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import webdataset
from PIL import Image
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from semantica.config import to_dict
from semantica.datasets import StageOutput
from semantica.distributed import ingest as stage_code
from semantica.episodes.census import Census, PageIds
from semantica.episodes.clean import image_id
from semantica.episodes.fetch import Fetcher
from semantica.episodes.fetch_config import FetchConfig
from semantica.episodes.images import ImageConfig
from semantica.episodes.ingest import IngestConfig, is_held_out
from semantica.episodes.pages import Page, ReadConfig
from semantica.episodes.sources import LABEL_SOURCES, SOURCES
from semantica.storage import file_sha256

Pages: TypeAlias = Mapping[str, Mapping[str, bytes]]  # page -> name -> bytes of the picture
Found: TypeAlias = dict[str, list[str]]  # page_url -> the URLs of its pictures

GOOD, COPY, BROKEN, FAR = ("0.png", "1.png", "2.png"), "3.png", "4.png", "2.png"
CLASSES = ("n00000001", "n00000002", "n00000003", "n00000004")  # a name of a page, of a class and of a WordNet synset
SITE = "http://site.example"  # of the pages; the URLs of pictures name the port of a server, which is another in each run


def png(*seed: int) -> bytes:
    """A picture of noise, unlike every other."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 48, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


PAGES: Pages = {
    page: {name: png(number, index) for index, name in enumerate(GOOD)}
    | {COPY: png(number, 0), BROKEN: f"no picture, {page}".encode()}
    for number, page in enumerate(CLASSES)
}
HALVES = [dict(list(PAGES.items())[:2]), dict(list(PAGES.items())[2:])]


# --- a crawl of each format: written under `root`, its far pictures at `base`; what pages and pictures it holds ---


def folder(root: Path, base: str) -> Found:
    for page, pictures in PAGES.items():
        (root / page).mkdir()
        for name, data in pictures.items():
            (root / page / name).write_bytes(data)
    return {page: [f"{page}/{name}" for name in pictures] for page, pictures in PAGES.items()}


def html(root: Path, base: str) -> Found:
    folder(root, base)
    found = {}
    for page, pictures in PAGES.items():
        urls = [f"{base}/{page}/{name}" if name == FAR else f"{page}/{name}" for name in pictures]
        (root / f"{page}.html").write_text("".join(f'<img src="{url}">' for url in urls))
        found[f"{page}.html"] = urls
    return found


def at_urls(base: str) -> Found:
    return {f"{SITE}/{page}.html": [f"{base}/{page}/{name}" for name in pictures] for page, pictures in PAGES.items()}


def warc(root: Path, base: str) -> Found:
    for number, half in enumerate(HALVES):
        with (root / f"crawl-{number}.warc.gz").open("wb") as file:
            writer = WARCWriter(file, gzip=True)
            for page, pictures in half.items():
                shown = "".join(f'<img src="{base}/{page}/{name}">' for name in pictures).encode()
                bodies = [(f"{SITE}/{page}.html", "text/html", shown)]
                bodies += [(f"{base}/{page}/{name}", "image/png", data) for name, data in pictures.items() if name != FAR]
                for url, kind, body in bodies:
                    http = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
                    record = writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=http)
                    writer.write_record(record)
    return at_urls(base)


def tables(root: Path, base: str, row: Callable[[str, list[str]], dict[str, Any]], schema: pa.Schema | None = None) -> Found:
    found = at_urls(base)
    for number, half in enumerate(HALVES):
        rows = [row(page, urls) for page, urls in found.items() if Path(page).stem in half]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), root / f"train-{number:05d}.parquet")
    return found


def obelics(root: Path, base: str) -> Found:
    def row(page: str, urls: list[str]) -> dict[str, Any]:
        general = json.dumps({"url": page, "warc_filename": "crawl.warc.gz"})
        return {"images": [*urls, None], "metadata": "[]", "general_metadata": general, "texts": [None] * len(urls) + ["words"]}

    return tables(root, base, row)


def omnicorpus(root: Path, base: str) -> Found:
    def row(page: str, urls: list[str]) -> dict[str, Any]:
        metadata = [{"bytes": 5, "width": 48, "height": 48} for _ in urls]
        return {"general_metadata": {"url": page, "id": "7"}, "images": urls, "texts": [None] * len(urls), "metadata": metadata}

    return tables(root, base, row)


def mmc4(root: Path, base: str) -> Found:
    found = at_urls(base)
    for number, half in enumerate(HALVES):
        documents = [
            {"url": page, "text_list": ["words"], "image_info": [{"image_name": "a.jpg", "raw_url": url} for url in urls]}
            for page, urls in found.items()
            if Path(page).stem in half
        ]
        text = "".join(json.dumps(document) + "\n" for document in documents)
        (root / f"docs_no_face_shard_{number}_v2.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    return found


def wit(root: Path, base: str) -> Found:
    found = at_urls(base)
    for number, half in enumerate(HALVES):
        text = io.StringIO(newline="")
        rows = [["en", page, url, "Title"] for page, urls in found.items() if Path(page).stem in half for url in urls]
        csv.writer(text, delimiter="\t").writerows([["language", "page_url", "image_url", "page_title"], *rows])
        (root / f"wit_v1.train.all-{number:05d}-of-00002.tsv.gz").write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    return found


def img2dataset(root: Path, base: str) -> Found:
    for number, half in enumerate(HALVES):
        with (root / f"{number:05d}.tar").open("wb") as file:
            writer = webdataset.TarWriter(file, encoder=False, mtime=0)
            for page, pictures in half.items():
                for name, data in pictures.items():
                    status = "failed_to_download" if name == FAR else "success"
                    facts = {"url": f"{base}/{page}/{name}", "page_url": f"{SITE}/{page}.html", "status": status}
                    sample = {"__key__": f"{page}-{name[0]}", "json": json.dumps(facts).encode()}
                    writer.write(sample if name == FAR else sample | {"png": data})
            writer.close()
    return at_urls(base)


def tar_of(members: Mapping[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def imagenet_train(root: Path, base: str) -> Found:
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of({f"{page}.tar": tar_of(PAGES[page]) for page in PAGES}))
    return {page: [f"{page}/{name}" for name in pictures] for page, pictures in PAGES.items()}


def imagenet_val(root: Path, base: str) -> Found:
    labelled = [(page, data) for page, pictures in PAGES.items() for data in pictures.values()]
    random.Random(0).shuffle(labelled)
    names = {f"ILSVRC2012_val_{number:08d}.JPEG": both for number, both in enumerate(labelled, 1)}
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of({name: data for name, (_, data) in names.items()}))
    synsets = np.empty((4, 1), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    for number, page in enumerate(CLASSES):
        synsets[number, 0] = (number + 1, page, 0)
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    truth = "".join(f"{CLASSES.index(page) + 1}\n" for page, _ in names.values()).encode()
    kit = {"data/meta.mat": meta.getvalue(), "data/ILSVRC2012_validation_ground_truth.txt": truth}
    members = {f"ILSVRC2012_devkit_t12/{name}": data for name, data in kit.items()}
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(tar_of(members, "w:gz"))
    return {page: [f"{page}/{name}" for name, (label, _) in names.items() if label == page] for page in CLASSES}


def lsun(root: Path, base: str) -> Found:
    found: Found = {}
    for page, pictures in PAGES.items():
        with lmdb.open(str(root / f"{page}_train_lmdb"), map_size=1 << 20) as environment, environment.begin(write=True) as writer:
            keys = {hashlib.sha1(name.encode()).hexdigest(): data for name, data in pictures.items()}
            for key, data in keys.items():
                writer.put(key.encode(), data)
        found[page] = [f"{page}/{key}" for key in keys]
    return found


def sun397(root: Path, base: str) -> Found:
    (root / "SUN397" / "n").mkdir(parents=True)
    folder(root / "SUN397" / "n", base)
    (root / "SUN397" / "ClassName.txt").write_text("".join(f"/n/{page}\n" for page in PAGES))
    for path in root.glob("SUN397/n/*/*.png"):
        path.rename(path.with_name(f"sun_{path.stem}.jpg"))
    return {page: [f"SUN397/n/{page}/sun_{name[0]}.jpg" for name in pictures] for page, pictures in PAGES.items()}


def pictures_table(root: Path, base: str) -> Found:
    found: Found = {}
    for number, half in enumerate(HALVES):
        rows = [{"image": data, "label": page} for page, pictures in half.items() for data in pictures.values()]
        pq.write_table(pa.Table.from_pylist(rows), root / f"set-{number}.parquet")
        for index, row in enumerate(rows):
            found.setdefault(row["label"], []).append(f"set-{number}.parquet#{index}")
    return found


CRAWLS: dict[str, Callable[[Path, str], Found]] = {
    "folder": folder, "html": html, "warc": warc, "obelics": obelics, "mmc4": mmc4, "omnicorpus": omnicorpus, "wit": wit,
    "webdataset": img2dataset, "pictures": pictures_table,
    "imagefolder": folder, "imagenet-train": imagenet_train, "imagenet-val": imagenet_val,
    "lsun": lsun, "sun397": sun397,
}  # fmt: skip


# --- the stage, part by part, without Ray ---


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
    shards = [{"name": f"part-{index:05d}", "part": asdict(part)} for index, part in enumerate(parts)]
    shards = [json.loads(json.dumps(shard)) for shard in (reversed(shards) if backwards else shards)]
    if config.fetch_urls:
        for shard in shards:
            stage_code._FetchPart(config, root, stage, config.fetch)(shard)
    census = Census(config.census_mb)
    for shard in shards:
        name = stage_code._CountPart(config, root, stage)(shard)["name"]
        census.add(PageIds.from_bytes((out / stage_code._CENSUS / name).read_bytes()))
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


@pytest.mark.parametrize("source", sorted(LABEL_SOURCES))
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
