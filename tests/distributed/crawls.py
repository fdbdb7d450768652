"""A crawl of four pages in the real format of every source, written under a root, and what pages and pictures it holds.

A page shows three good pictures, a copy of the first and a file that is no picture; where the format allows, the third is only
named by URL and comes from a server on loopback.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
import webdataset
from PIL import Image
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

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
