"""Small real datasets, made through the project's own code. Its modules are imported late: the shape checker's hook comes first.

In `make.encodings` every picture has a number: its top left pixel holds it (R + 256 G), and so does the first value of its tokens.
"""

import importlib.util
import os
import shutil
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

if importlib.util.find_spec("hypothesis"):  # not in the environment of the TPU path
    import hypothesis

    hypothesis.settings.register_profile("untimed", deadline=None)  # a test that waits for a core is not a slow one
    hypothesis.settings.load_profile("untimed")

NUM_TOKENS, DIM = 3, 8
IDENTITY = {
    "name": "numbers", "weights_sha256": "0" * 64, "image_px": 14, "mean": [0.5] * 3, "std": [0.5] * 3, "dtype": "float32",
    "num_tokens": NUM_TOKENS, "token_dim": DIM, "pooled_dim": DIM,
}  # fmt: skip


@contextmanager
def limited():
    """One thread: the tensors here are so small that threads only wait for each other, for minutes when the cores are shared."""
    if "torch" not in sys.modules:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def one_thread_of_fixtures():
    """What fixtures of a module train is compared with what its tests train, to the bit."""
    with limited():
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """Of a test that is the first to import torch too."""
    with limited():
        yield


@pytest.fixture(autouse=True, scope="session")
def new_databases(tmp_path_factory):
    """A new SQLite store of MLflow is a copy of one that MLflow made before: its migrations take one to three seconds each time."""
    if not importlib.util.find_spec("mlflow"):
        yield
        return
    from semantica.tracking import server

    client, made, prefix = server._client, tmp_path_factory.mktemp("mlflow") / "new.db", "sqlite:///"

    def client_of(uri):
        database = uri.removeprefix(prefix)
        if uri.startswith(prefix) and "?" not in uri and not os.path.exists(database):
            if not made.exists():
                client(f"{prefix}{made}").search_experiments()
            shutil.copyfile(made, database)
        return client(uri)

    server._client = client_of
    yield
    server._client = client


@pytest.fixture(scope="session")
def s3():
    """The URI of an empty bucket on a local S3 server (moto), which the environment points every S3 client to."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    names["AWS_DEFAULT_REGION"] = "us-east-1"
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    boto3.client("s3").create_bucket(Bucket="crawl")
    yield "s3://crawl"
    server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def make():
    """make.picture, make.episodes, make.encodings, make.scores, make.selection."""
    return SimpleNamespace(picture=picture, episodes=episodes, encodings=encodings, scores=scores, selection=selection)


def picture(number, side=16):
    """A lossless picture that holds its number."""
    from semantica.generation.generate import png_bytes

    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    pixels[0, 0] = number % 256, number // 256, 0
    return png_bytes(pixels)


def episodes(sizes, side=16, first=0):
    """An EPISODES table: one page of `size` numbered pictures for each of `sizes`."""
    import pyarrow as pa

    from semantica.data.schemas import EPISODES

    rows, number = [], first
    for index, size in enumerate(sizes):
        images = []
        for _ in range(size):
            image = {"image_id": f"image{number:04d}", "url": f"http://x/{number}", "bytes": picture(number, side)}
            images.append({**image, "width": side, "height": side})
            number += 1
        name = f"page{first:04d}-{index:02d}"
        rows.append({"episode_id": name, "page_url": f"http://x/{name}", "source": "test", "images": images})
    return pa.Table.from_pylist(rows, schema=EPISODES)


def pooled_of(numbers):
    """The pooled embeddings (n, D) of numbered pictures: a common part makes the cosines lean to the right in [-1, 1]."""
    noise = [np.random.default_rng([7, n]).standard_normal(DIM) for n in numbers]
    return (np.array(noise) + 0.6).reshape(-1, DIM).astype(np.float16)


def encodings(folder, sizes=((4, 3, 2, 5, 3, 4), (2, 4, 1, 3, 5, 3)), *, rows_per_group=2, tokens=True, salt=0):
    """An encodings dataset: a shard for each tuple of page sizes."""
    import pyarrow as pa

    from semantica.data.dataset import StageOutput
    from semantica.data.schemas import encodings_schema

    config = {"store_tokens": tokens, "rows_per_group": rows_per_group, "encoder": {}, "salt": salt}
    stage = StageOutput(folder, "encodings", config, {"episodes": "1" * 64})
    assert stage.open() is None
    total, first = np.zeros(DIM), 0
    for shard, pages in enumerate(sizes):
        table = episodes(pages, first=first)
        numbers = iter(range(first, first + sum(pages)))
        own = [[next(numbers) for _ in range(size)] for size in pages]
        pooled = [pooled_of(page) for page in own]
        columns = [*table.columns, pa.array([list(p) for p in pooled], pa.list_(pa.list_(pa.float16(), DIM)))]
        if tokens:
            values = [[np.full(NUM_TOKENS * DIM, n, np.float16).tobytes() for n in page] for page in own]
            columns.append(pa.array(values, pa.list_(pa.binary(2 * NUM_TOKENS * DIM))))
        schema = encodings_schema(DIM, NUM_TOKENS if tokens else None, DIM if tokens else None)
        written = pa.Table.from_arrays(columns, schema=schema)
        stage.write_shard(f"shard-{shard:05d}", {"": written}, {}, rows_per_group)
        total += np.concatenate(pooled).astype(np.float64).sum(0)
        first += sum(pages)
    counts = {"num_episodes": sum(map(len, sizes)), "num_train_images": first, "num_held_out_images": 0}
    stage.finish(counts, {"pictures": [], "encoder": IDENTITY, "corpus_mean": (total / first).tolist()})
    return folder


def scores(folder, of):
    """The scores of an encodings folder, as distributed.pairs writes them."""
    from semantica.data.dataset import StageOutput, read_manifest
    from semantica.pairs.scores import finish_scores, score_shard

    source = read_manifest(of, "encodings")
    stage = StageOutput(folder, "scores", {}, {"encodings": source.hash})
    assert stage.open() is None
    mean = np.array(source.facts["corpus_mean"], np.float32)
    for entry in source.shards():
        score_shard(stage, of, entry, mean)
    finish_scores(stage, 0.0)
    return folder


def selection(folder, of, **band):
    """The selection for a band over a scores folder."""
    from semantica.pairs.selection import BandConfig, select, selection_stage

    settings = BandConfig(**band)
    stage = selection_stage(of, settings, folder)
    assert stage.open() is None
    select(stage, of, settings)
    return folder
