"""The pictures and curves of the report, read from the stages' outputs: what a person looks at before any figure."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from semantica.data.dataset import Manifest, read_shard
from semantica.data.location import Location
from semantica.data.pictures import decode, to_array
from semantica.data.schemas import HELD_OUT
from semantica.metrics.evaluate import Figures
from semantica.report.charts import Curve
from semantica.report.gallery import Example, Gallery, Grid
from semantica.report.grids import sheet_png
from semantica.report.paper_charts import guidance_grid
from semantica.training.checkpoint import Checkpoint

_GRID_ROWS = 10
_MOST = 64  # conditioning images shown with a sample each


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
    pictures = _Pictures(samples, drawn, encodings, source)
    shown = pictures.conditions[:_GRID_ROWS]
    at = middle_guidance(drawn)
    sheet = [sample for c in pictures.conditions if (sample := pictures.sample(c, at)) is not None][:_MOST]
    compared = _conditions(encodings, source, pictures.conditions[:_MOST], pictures.side)
    return [
        guidance_grid(
            [pictures.stored[c] for c in shown],
            [[pictures.sample(c, w) for w in drawn.config["guidance"]] for c in shown],
            weights=drawn.config["guidance"],
        ),
        Grid(
            title="Every sample",
            png=sheet_png(sheet, 16, scale=2),
            alt=f"{len(sheet)} samples, one for each conditioning image",
            caption=f"One sample for each conditioning image, none left out up to {_MOST}, w = {at:g}.",
        ),
        Grid(
            title="Every conditioning image",
            png=sheet_png([compared[c] for c in pictures.conditions[:_MOST]], 16, scale=2),
            alt=f"{len(pictures.conditions[:_MOST])} held-out conditioning images, in the order of the samples",
            caption="In the same order, reduced to the size that they are compared at.",
        ),
    ]


def galleries(samples: Location, drawn: Manifest, encodings: Location, source: Manifest) -> list[Gallery]:
    """Every sample at one w beside its conditioning image, to look through one by one; nothing where none was drawn at it."""
    pictures = _Pictures(samples, drawn, encodings, source)
    at = middle_guidance(drawn)
    examples = [
        Example(condition=pictures.stored[c], samples=[sample], sample_labels=[f"w = {at:g}"], label=f"condition {number}")
        for number, c in enumerate(pictures.conditions[:_MOST], start=1)
        if (sample := pictures.sample(c, at)) is not None
    ]
    caption = f"One sample for each held-out conditioning image, none left out up to {_MOST}."
    return [Gallery(title="Each sample beside its condition", examples=examples, caption=caption)] if examples else []


def middle_guidance(drawn: Manifest) -> float:
    """The w that was drawn nearest to the paper's 0.5."""
    return float(min(drawn.config["guidance"], key=lambda w: abs(w - 0.5)))


class _Pictures:
    """The conditioning images as they are stored, and the first sample of each at each w."""

    def __init__(self, samples: Location, drawn: Manifest, encodings: Location, source: Manifest) -> None:
        self.side: int = drawn.facts["resolution_px"]
        self.conditions: list[str] = [image_id for image_id, _ in drawn.facts["conditions"]]
        self.stored = _conditions(encodings, source, self.conditions[:_MOST], None)
        self.drawn: dict[tuple[str, float], np.ndarray] = {}
        for entry in drawn.shards():
            for row in read_shard(samples, entry).to_pylist():
                if row["sample_index"] == 0:
                    self.drawn[row["image_id"], round(row["guidance"], 4)] = to_array(decode(row["bytes"], self.side))

    def sample(self, condition: str, guidance: float) -> np.ndarray | None:
        """The first sample drawn for the condition at this w, or None."""
        return self.drawn.get((condition, round(guidance, 4)))


def _conditions(encodings: Location, source: Manifest, wanted: Sequence[str], side: int | None) -> dict[str, np.ndarray]:
    names, found = set(wanted), {}
    for entry in source.shards(HELD_OUT):
        for row in read_shard(encodings, entry, ["images"])["images"].to_pylist():
            found.update({i["image_id"]: to_array(decode(i["bytes"], side or i["width"])) for i in row if i["image_id"] in names})
    return found
