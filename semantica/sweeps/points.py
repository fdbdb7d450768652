"""The points of a trial: the steps of its training at which samples of its EMA weights are measured, and how.

In: weights in training, and a `HeldOut`, chosen once per sweep: the conditioning images, and the key of the real pictures'
statistics. Out: per point, the Fréchet distance between samples and held-out pictures in fixed features, and a picture of some
samples, both on disk. Conditioning images and noise are the same for all trials and points, so figures differ by the weights
alone. Nothing here knows Ray.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semantica.config import from_dict
from semantica.data.dataset import read_manifest
from semantica.data.durable import write_atomically
from semantica.data.location import Location
from semantica.data.pictures import PictureRef, StoredPictures, TokensOf, decode, list_pictures, to_array
from semantica.encoders.encoder import load_encoder
from semantica.encoders.settings import EncodeConfig
from semantica.errors import DataError
from semantica.evaluation.of_training import model_of
from semantica.evaluation.sets import by_image
from semantica.generation.conditions import Conditions
from semantica.generation.generate import choose_conditions, sample_pictures
from semantica.generation.model import Model
from semantica.measure.frechet import FeatureStatistics, Reference, frechet_distance
from semantica.measure.networks.extractors import FeatureExtractor, encoder_features, load_features, resolve
from semantica.measure.reference import cached_reference, read_reference, reference_key
from semantica.report.pictures import grid_png
from semantica.sweeps.results import Figure, figure_path, keep_figure, read_figure
from semantica.sweeps.settings import MeasureConfig
from semantica.training.recipe import TrainConfig

FRECHET = "frechet"  # in MLflow and in Ray Tune
_ROWS = 64  # conditioning images whose tokens are in memory at a time
_PICTURES = 1024  # real pictures that are decoded at a time


@dataclass(frozen=True)
class HeldOut:
    """What all trials are measured on: conditioning images in order, the key of the reference's statistics, and the extractor."""

    conditions: tuple[str, ...]
    num_reference: int
    reference: str
    extractor: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> HeldOut:
        """Read a HeldOut from a file."""
        values = json.loads(path.read_text())
        return cls(**values | {"conditions": tuple(values["conditions"])})

    def keep(self, path: Path) -> None:
        """Write the HeldOut to a file."""
        write_atomically(path, json.dumps(asdict(self)).encode())


def held_out_pictures(encodings: Sequence[Location]) -> dict[str, PictureRef]:
    """The held-out pictures that all encodings have, as places in the first. Raises DataError for fewer than two."""
    first, *others = [by_image(list_pictures(folder)) for folder in encodings]
    pictures = {name: picture for name, picture in first.items() if all(name in other for other in others)}
    if len(pictures) < 2:
        raise DataError(
            f"sweep: expected at least 2 held-out pictures that all encodings have, got {len(pictures)}; ingest with "
            "held_out_share above 0, and encode the same episodes with each encoder"
        )
    return pictures


def make_held_out(
    settings: MeasureConfig, encodings: Sequence[Location], resolution_px: int, references: Location, device: torch.device | str
) -> HeldOut:
    """Choose the conditioning images, and compute the statistics of the real pictures at the model's size unless cached."""
    pictures = held_out_pictures(encodings)
    ordered = [c.image_id for c in choose_conditions(list(pictures.values()), len(pictures), settings.seed)]
    reference = ordered[: settings.num_reference]
    extractor = load_extractor(settings.extractor, encodings[0], device)
    identity = extractor.identity.to_dict()
    key = reference_key(identity, f"{resolution_px} px", reference)
    stored = StoredPictures(encodings[0])

    def compute() -> FeatureStatistics:
        total = FeatureStatistics.empty(extractor.identity.dim)
        for start in range(0, len(reference), _PICTURES):
            encoded = stored.read([pictures[name] for name in reference[start : start + _PICTURES]])
            pixels = torch.stack([decode(data, resolution_px) for data in encoded.values()])
            total += FeatureStatistics.of(extractor.features(pixels).numpy())
        return total

    cached_reference(references, key, compute)
    return HeldOut(tuple(ordered[: settings.num]), len(reference), key, identity)


def load_extractor(name: str, encodings: Location, device: torch.device | str) -> FeatureExtractor:
    """The extractor `name`; "encoder" is the encoder that made `encodings`. Raises DataError when its weights have changed."""
    if name != "encoder":
        return load_features(resolve(name), device)
    manifest = read_manifest(encodings, "encodings")
    encoder = load_encoder(from_dict(EncodeConfig, dict(manifest.config)).encoder, str(device))
    if encoder.identity.to_dict() != manifest.facts["encoder"]:
        raise DataError(
            f"sweep: the weights of {encoder.identity.name} are not those that made {encodings}; restore the old weights"
        )
    return encoder_features(encoder)


@dataclass(frozen=True)
class Points:
    """When and how a trial is measured. folder: of the trial. measured_by: the encodings whose encoder measures.

    steps: the step of each point, from point 1. pause: the step of the point after which the training is saved and ends, to be
    resumed later.
    """

    folder: Path
    steps: tuple[int, ...]
    settings: MeasureConfig
    held_out: Path
    references: Path
    measured_by: Location
    pause: int | None = None

    def read_figure(self, step: int) -> Figure | None:
        """The figure of the point at this step; None when it is not on disk."""
        return read_figure(self.folder, self.steps.index(step) + 1)

    def picture(self, figure: Figure) -> bytes:
        """The PNG of the samples at the figure's point."""
        return figure_path(self.folder, figure.point).with_suffix(".png").read_bytes()


class TrialMeasurer:
    """`measurer.measure(weights)`: (Fréchet distance, PNG of some samples), from the unsharded EMA weights by name.

    encodings: the trial's own; their tokens condition the samples.
    """

    def __init__(
        self,
        points: Points,
        config: TrainConfig,
        encodings: Location,
        tokens_of: TokensOf | None,
        device: torch.device | str,
    ) -> None:
        self.settings, self.config, self.held_out, self.device = points.settings, config, HeldOut.read(points.held_out), device
        self.extractor = load_extractor(self.settings.extractor, points.measured_by, device)
        if self.extractor.identity.to_dict() != dict(self.held_out.extractor):
            raise DataError(
                f"sweep: {self.extractor.identity.title} is another network than when the sweep started; start a new sweep"
            )
        self.reference: Reference = read_reference(points.references, self.held_out.reference)
        self.places = by_image(list_pictures(encodings))
        self.conditions = Conditions(encodings, tokens_of)
        self.stored = StoredPictures(encodings)

    def measure(self, average: Mapping[str, Tensor]) -> tuple[float, bytes]:
        """The figure and the picture. The weights are copied; the network in training does not run."""
        model = model_of(average, self.config, self.device)
        names = self.held_out.conditions
        drawn = torch.cat([self._draw(model, names[i : i + _ROWS]) for i in range(0, len(names), _ROWS)])
        figure = frechet_distance(FeatureStatistics.of(self.extractor.features(drawn).numpy()), self.reference)
        return figure, self._png(drawn)

    def _draw(self, model: Model, names: Sequence[str]) -> Tensor:
        cond = self.conditions.read([self.places[name] for name in names])
        drawn: Tensor = sample_pictures(
            model, cond, [f"{name}/0" for name in names], self.settings.guidance, self.settings.drawing, 2 * _ROWS
        )
        return drawn

    def _png(self, drawn: Tensor) -> bytes:
        names = self.held_out.conditions[: self.settings.num_shown]
        px = self.config.denoiser.resolution_px
        stored = self.stored.read([self.places[name] for name in names])
        rows = [[to_array(decode(stored[name], px)), to_array(drawn[i])] for i, name in enumerate(names)]
        return grid_png(rows, ["condition", "EMA"])


class PointMeter:
    """Measures the points of one training. The networks that measure are loaded at the first point.

    is_new: the training starts now, so the seconds until its first point are known.
    """

    def __init__(
        self,
        points: Points,
        config: TrainConfig,
        encodings: Location,
        tokens_of: TokensOf | None,
        device: torch.device | str,
        *,
        is_new: bool,
    ) -> None:
        self.points, self.config, self.encodings, self.tokens_of, self.device = points, config, encodings, tokens_of, device
        self._measurer: TrialMeasurer | None = None
        # When the previous point was done, or the training started; None when that was in another process.
        self._since = time.monotonic() if is_new else None

    def figure(self, step: int, average: Mapping[str, Tensor]) -> Figure:
        """The figure of the point at this step: read from disk, or else measured now and written to disk."""
        figure = self.points.read_figure(step) or self._measure(step, average)
        self._since = time.monotonic()
        return figure

    def _measure(self, step: int, average: Mapping[str, Tensor]) -> Figure:
        started = time.monotonic()
        points, point = self.points, self.points.steps.index(step) + 1
        measurer = self._measurer = self._measurer or TrialMeasurer(
            points, self.config, self.encodings, self.tokens_of, self.device
        )
        frechet, png = measurer.measure(average)
        path = figure_path(points.folder, point).with_suffix(".png")
        write_atomically(path, png)  # before the figure, so that every figure has a picture
        figure = Figure(
            point=point,
            step=step,
            frechet=frechet,
            num_samples=len(measurer.held_out.conditions),
            num_reference=measurer.held_out.num_reference,
            extractor=measurer.extractor.identity.name,
            seconds=None if self._since is None else started - self._since,
            measuring_seconds=time.monotonic() - started,
        )
        return keep_figure(points.folder, figure)


def tune_values(figure: Figure, num_points: int) -> dict[str, Any]:
    """A figure as values for Ray Tune and MLflow."""
    last = {"frechet_final": figure.frechet} if figure.point == num_points else {}
    return {FRECHET: figure.frechet, "point": figure.point, **last}
