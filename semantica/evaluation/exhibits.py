"""The pictures of the report (Fig. 1, 4 and 5 of the paper): the conditioning image left, stored samples of it right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from semantica.data.dataset import StageOutput, read_manifest, read_shard
from semantica.data.location import Location
from semantica.data.pictures import StoredPictures, decode, to_array
from semantica.evaluation.outcome import Outcome
from semantica.evaluation.requests import Cell, requests_of, wanted_pictures
from semantica.evaluation.sets import EvaluationSet
from semantica.report.gallery import Example, Gallery, Grid
from semantica.report.paper_charts import guidance_grid, samples_grid
from semantica.report.protocol import Protocol

Pixels = np.ndarray


def read_samples(drawn: Location, names: Sequence[str], side: int) -> dict[str, Pixels]:
    """The named samples of a finished drawn folder, (h, w, 3) uint8."""
    manifest, wanted = read_manifest(drawn, "drawn"), set(names)
    stage = StageOutput.of(drawn, manifest)
    with_any = {stem for stem, stats in stage.receipts() if wanted.intersection(stats["names"])}
    found = {}
    for entry in manifest.shards():
        if entry.path.removesuffix(".parquet") in with_any:
            for row in read_shard(drawn, entry, ["sample_id", "bytes"]).to_pylist():
                if row["sample_id"] in wanted:
                    found[row["sample_id"]] = to_array(decode(row["bytes"], side))
    return found


def read_conditions(data: EvaluationSet, names: Sequence[str], side: int) -> dict[str, Pixels]:
    """The named pictures of a set, at the side that samples have."""
    stored = StoredPictures(data.encodings).read([data.pictures[name] for name in names])
    return {name: to_array(decode(value, side)) for name, value in stored.items()}


def grids(outcome: Outcome, model: str, data: str, model_hash: str, drawn: Location) -> Iterator[Grid | Gallery]:
    """For one model and set: several samples a condition, one sample a w from one noise, and a gallery of both."""
    settings, the_set, side = outcome.settings, outcome.sets[data], outcome.resolution_px
    cells = [Cell(model, data, "grid", w) for w in settings.guidance]
    requests = {cell: requests_of(cell, model_hash, the_set, settings) for cell in cells}
    shown = list(dict.fromkeys(image_id for image_id, _ in wanted_pictures(cells[0], the_set, settings)))
    conditions = read_conditions(the_set, shown, side)
    samples = read_samples(drawn, [r.name for of in requests.values() for r in of], side)
    pictures = {(r.image_id, r.index, r.guidance): samples[r.name] for of in requests.values() for r in of}
    stated = Protocol(
        data=data, resolution_px=side, num_steps=settings.sampler.num_steps, ema=settings.use_ema, seeds=[settings.seed]
    )
    middle = min(settings.guidance, key=lambda w: abs(w - 0.5))
    left = [conditions[name] for name in shown]
    several = [[pictures[name, i, middle] for i in range(settings.num_grid_samples)] for name in shown]
    over_w = [[pictures[name, 0, w] for w in settings.guidance] for name in shown]
    of = f"{model}, {data}"
    yield samples_grid(left, several, guidance=middle, protocol=stated, title=f"Samples of {of}")
    yield guidance_grid(left, over_w, weights=settings.guidance, protocol=stated, title=f"Samples against guidance, {of}")
    labels = [f"w = {w:g}" for w in settings.guidance]
    examples = [
        Example(condition=conditions[name], samples=row, label=the_set.pictures[name].page_url, sample_labels=labels)
        for name, row in zip(shown, over_w, strict=True)
    ]
    yield Gallery(title=f"One by one, {of}", examples=examples, protocol=stated)
