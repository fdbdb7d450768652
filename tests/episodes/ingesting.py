"""Pages through a call of ingest, as tables: small settings, pictures of noise, and what came out."""

import io
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from semantica.data.schemas import EPISODES
from semantica.episodes.census import Census
from semantica.episodes.images import ImageConfig, normalise
from semantica.episodes.ingest import IngestConfig, count_pictures, ingest_pages
from semantica.episodes.quarantine import quarantine_table

TINY = ImageConfig(image_px=16, min_side_px=8)


@dataclass
class Result:
    """All pages of one call, as tables."""

    train: pa.Table
    held_out: pa.Table
    quarantine: pa.Table
    stats: Counter


def ingest(pages, config, census=None):
    ingested = list(ingest_pages(pages, census, config, lambda data: normalise(data, config.image)))
    stats = sum((page.counts() for page in ingested), Counter())
    tables = [
        pa.Table.from_pylist([row for p in ingested if (row := getattr(p, side))], EPISODES) for side in ("train", "held_out")
    ]
    return Result(*tables, quarantine_table([row for p in ingested for row in p.refused]), stats)


def census_of(*calls, config):
    census = Census(1)
    for pages in calls:
        census.add(count_pictures(pages, config))
    return census


def settings_for(**changes):
    return IngestConfig(**({"image": TINY, "held_out_share": 0.0} | changes))


def noise(seed, side=24, format="PNG"):
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).resize((side, side), Image.Resampling.NEAREST).save(stream, format)
    return stream.getvalue()


def held(table):
    return [image["image_id"] for row in table.to_pylist() for image in row["images"]]


def reasons(result):
    return Counter(result.quarantine.column("reason").to_pylist())
