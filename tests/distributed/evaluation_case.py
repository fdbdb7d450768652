"""What the evaluation's tests evaluate: a checkpoint of a few steps and small pictures in classes, all made without Ray."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from small import draw_pages

from semantica.config import to_dict
from semantica.data.dataset import StageOutput
from semantica.data.schemas import EPISODES
from semantica.diffusion.settings import SamplerConfig
from semantica.encoders.encoder import load_encoder
from semantica.encoders.settings import EncodeConfig
from semantica.encoders.shard import encode_shard
from semantica.encoders.totals import finish_encodings, shards_of
from semantica.episodes.clean import image_id
from semantica.episodes.images import ImageConfig, normalise
from semantica.evaluation.settings import EvaluationConfig

ROOT = Path(__file__).parents[2]
NUM_CLASSES, NUM_PICTURES = 4, 4
SETTINGS = EvaluationConfig(
    protocol=("curve", "one-shot", "grids"),
    num=6,
    num_copies=2,
    guidance=(0.0, 0.5),
    table_guidance=(0.5,),
    num_seeds=2,
    num_condition_sets=2,
    num_grid_rows=2,
    num_grid_samples=2,
    picture_px=40,
    extractor=("encoder",),
    perceptual=(),
    sampler=SamplerConfig(num_steps=2),
    batch_size=4,
)


@dataclass(frozen=True)
class Trained:
    """A checkpoint of a few steps, class folders to evaluate it on, and the same as encodings."""

    checkpoint: Path
    root: Path
    encodings: Path


def make_trained(make: Any, base: Path) -> Trained:
    """The run that the tests of generation train."""
    spec = importlib.util.spec_from_file_location("generation_runs", ROOT / "tests" / "generation" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    runs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runs)
    made = runs.train(make, base / "run", runs.random_encoder(base / "encoder"))
    root = draw_pages(base / "classes", NUM_CLASSES, NUM_PICTURES)
    return Trained(made.checkpoint, root, encoded(root, base / "set", made.settings))


def encoded(root: Path, folder: Path, settings: EncodeConfig) -> Path:
    """The pictures of class folders as held-out encodings, made without Ray."""
    normal = ImageConfig(image_px=40, min_side_px=1)
    rows = []
    for page in sorted(root.iterdir()):
        images = []
        for path in sorted(page.iterdir()):
            data = path.read_bytes()
            stored = normalise(data, normal).data
            images.append({"image_id": image_id(data), "url": path.name, "bytes": stored, "width": 40, "height": 40})
        rows.append({"episode_id": page.name, "page_url": page.name, "source": "folder", "images": images})
    episodes = StageOutput(folder / "episodes", "episodes", {})
    assert episodes.open() is None
    tables = {"": EPISODES.empty_table(), "held_out": pa.Table.from_pylist(rows, schema=EPISODES)}
    episodes.write_shard("part-00000", tables, {}, 1)
    counts = {"num_train_images": 0, "num_held_out_images": NUM_CLASSES * NUM_PICTURES}
    source = episodes.finish(counts, {"pictures": []})
    chosen = replace(settings, store_tokens=False, batch_size=4)
    stage = StageOutput(folder / "encodings", "encodings", to_dict(chosen), {"episodes": source.hash})
    assert stage.open() is None
    encoder = load_encoder(chosen.encoder)
    for shard in shards_of(source, ("", "held_out")):
        encode_shard(stage, episodes.folder, shard, encoder, chosen)
    finish_encodings(stage, source, 0.0)
    return folder / "encodings"
