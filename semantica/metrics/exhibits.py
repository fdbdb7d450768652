"""The pictures and curves of the report, read from the stages' outputs: what a person looks at before any figure."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from semantica.datasets import Manifest, read_shard
from semantica.metrics.charts import Curve
from semantica.metrics.evaluate import Figures
from semantica.metrics.grids import grid_png, sheet_png
from semantica.metrics.report import Grid
from semantica.pairs.loader import decode_at
from semantica.storage import Location
from semantica.training.checkpoint import Checkpoint

_GRID_ROWS = 10


def curves(figures: Figures, checkpoint: Checkpoint, perceptual_name: str) -> list[Curve]:
    """The training loss, similarity against w, and quality against diversity (as Fig. 3 of the paper)."""
    drawn = []
    history_path = checkpoint.folder.parent / "history.json"
    if history_path.exists():
        history = json.loads(history_path.read_text())
        steps = [h["step"] for h in history]
        drawn.append(
            Curve(
                title="Training loss",
                x_label="step",
                y_label="mean ‖eps − eps_hat‖²",
                log_y=True,
                series={"loss": (steps, [h["loss"] for h in history])},
            )
        )
    w = [f.guidance for f in figures.by_guidance]
    drawn.append(
        Curve(
            title="Similarity against guidance",
            x_label="guidance w",
            y_label="cosine",
            series={
                "own condition": (w, [f.similarity.own for f in figures.by_guidance]),
                "other conditions": (w, [f.similarity.other for f in figures.by_guidance]),
            },
        )
    )
    if all(f.perceptual is not None for f in figures.by_guidance):
        distance = [f.perceptual or 0.0 for f in figures.by_guidance]
        drawn.append(
            Curve(
                title="Quality against diversity",
                x_label="Fréchet distance",
                y_label=perceptual_name,
                series={"samples": ([f.frechet for f in figures.by_guidance], distance)},
                point_labels={"samples": [f"w = {g:g}" for g in w]},
                caption="As Fig. 3 of the paper: left is nearer to real pictures, up is further from the conditioning image.",
            )
        )
    return drawn


def grids(samples: Location, drawn: Manifest, encodings: Location, source: Manifest) -> list[Grid]:
    """Condition and samples over w (as Fig. 4 of the paper), and every sample at one w above every condition."""
    side = drawn.facts["resolution_px"]
    conditions = [image_id for image_id, _ in drawn.facts["conditions"]]
    stored = _pictures(encodings, source, conditions, None)
    at_resolution = _pictures(encodings, source, conditions, side)
    drawn_pictures: dict[tuple[str, float], np.ndarray] = {}
    for entry in drawn.shards():
        for row in read_shard(samples, entry).to_pylist():
            if row["sample_index"] == 0:
                drawn_pictures[row["image_id"], round(row["guidance"], 4)] = _array(row["bytes"], side)
    weights = drawn.config["guidance"]
    rows = [[stored[c], *(drawn_pictures.get((c, round(w, 4))) for w in weights)] for c in conditions[:_GRID_ROWS]]
    labels = ["condition", *(f"w = {w:g}" for w in weights)]
    middle = min(weights, key=lambda w: abs(w - 0.5))
    sheet = [drawn_pictures[c, round(middle, 4)] for c in conditions if (c, round(middle, 4)) in drawn_pictures]
    return [
        Grid(
            title="Samples against guidance",
            png=grid_png(rows, labels),
            alt=f"{len(rows)} rows: a held-out conditioning image, then one sample at each of {len(weights)} guidance weights",
            caption="Left: a held-out conditioning image. Right: one sample at each w, from the same noise (the paper, Fig. 4).",
        ),
        Grid(
            title="Every sample",
            png=sheet_png(sheet[:64], 16, scale=2),
            alt=f"{min(64, len(sheet))} samples, one for each conditioning image",
            caption=f"One sample for each conditioning image, none left out up to 64, w = {middle:g}.",
        ),
        Grid(
            title="Every conditioning image",
            png=sheet_png([at_resolution[c] for c in conditions][:64], 16, scale=2),
            alt=f"{min(64, len(conditions))} held-out conditioning images, in the order of the samples",
            caption="In the same order, reduced to the size that they are compared at.",
        ),
    ]


def _array(data: bytes, side: int) -> np.ndarray:
    pixels: np.ndarray = decode_at(data, side).permute(1, 2, 0).numpy()
    return pixels


def _pictures(encodings: Location, source: Manifest, wanted: Sequence[str], side: int | None) -> dict[str, np.ndarray]:
    names, found = set(wanted), {}
    for entry in source.shards("held_out"):
        for row in read_shard(encodings, entry, ["images"])["images"].to_pylist():
            found.update({i["image_id"]: _array(i["bytes"], side or i["width"]) for i in row if i["image_id"] in names})
    return found
