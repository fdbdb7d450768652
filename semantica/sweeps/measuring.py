"""The figure of a trial: the Fréchet distance of samples of its EMA weights from held-out pictures, in fixed features.

In: weights in training, and a `HeldOut`, chosen once a sweep: the conditioning images, and where the statistics of the real
pictures are. Out: the distance, and a picture of some samples. Conditions and noise are the same for all trials and points, so that
figures differ by the weights alone.
"""

from __future__ import annotations

import json
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
from semantica.evaluation.sets import by_image
from semantica.generation.conditions import Conditions
from semantica.generation.generate import choose_conditions, sample_pictures
from semantica.generation.model import Model
from semantica.generation.settings import SpeedConfig
from semantica.measure.frechet import FeatureStatistics, Reference, frechet_distance
from semantica.measure.networks.extractors import FeatureExtractor, encoder_features, load_features, resolve
from semantica.measure.reference import cached_reference, read_reference, reference_key
from semantica.report.pictures import grid_png
from semantica.sweeps.settings import MeasureConfig
from semantica.training.loop import initial_network
from semantica.training.recipe import TrainConfig

_ROWS = 64  # conditioning images whose tokens are in memory at once
_PICTURES = 1024  # real pictures that are decoded at once


@dataclass(frozen=True)
class HeldOut:
    """What trials are measured on: conditioning images in order, the key of the reference's statistics, and what it is made of."""

    conditions: tuple[str, ...]
    num_reference: int
    reference: str
    extractor: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> HeldOut:
        """That in a file."""
        values = json.loads(path.read_text())
        return cls(**values | {"conditions": tuple(values["conditions"])})

    def keep(self, path: Path) -> None:
        """Write it to a file."""
        write_atomically(path, json.dumps(asdict(self)).encode())


def held_out_pictures(encodings: Sequence[Location]) -> dict[str, PictureRef]:
    """The held-out pictures that all of these encodings have, placed in the first. Raises DataError for fewer than two."""
    first, *others = [by_image(list_pictures(folder)) for folder in encodings]
    found = {name: picture for name, picture in first.items() if all(name in other for other in others)}
    if len(found) < 2:
        raise DataError(
            f"sweep: expected at least 2 held-out pictures that all encodings have, got {len(found)}; ingest with "
            "held_out_share above 0, and encode the same episodes with each encoder"
        )
    return found


def make_held_out(
    settings: MeasureConfig, encodings: Sequence[Location], resolution_px: int, references: Location, device: torch.device | str
) -> HeldOut:
    """The conditioning images, and the statistics of the real pictures at the model's size, computed where there are none."""
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
            found = stored.read([pictures[name] for name in reference[start : start + _PICTURES]])
            pixels = torch.stack([decode(data, resolution_px) for data in found.values()])
            total += FeatureStatistics.of(extractor.features(pixels).numpy())
        return total

    cached_reference(references, key, compute)
    return HeldOut(tuple(ordered[: settings.num]), len(reference), key, identity)


def load_extractor(name: str, encodings: Location, device: torch.device | str) -> FeatureExtractor:
    """The extractor; "encoder" is what made these encodings. Raises DataError when its weights are no longer the same."""
    if name != "encoder":
        return load_features(resolve(name), device)
    manifest = read_manifest(encodings, "encodings")
    encoder = load_encoder(from_dict(EncodeConfig, dict(manifest.config)).encoder, str(device))
    if encoder.identity.to_dict() != manifest.facts["encoder"]:
        raise DataError(f"sweep: the weights of {encoder.identity.name} are no longer those that made {encodings}; put them back")
    return encoder_features(encoder)


class TrialMeasurer:
    """`measurer.measure(weights)`: (Fréchet distance, PNG of some samples) of whole EMA weights by name.

    encodings: the trial's own, whose tokens condition. measured_by: the encodings whose encoder measures.
    """

    def __init__(
        self,
        settings: MeasureConfig,
        config: TrainConfig,
        held_out: HeldOut,
        references: Location,
        *,
        encodings: Location,
        measured_by: Location,
        tokens_of: TokensOf | None,
        device: torch.device | str,
    ) -> None:
        self.settings, self.config, self.held_out, self.device = settings, config, held_out, device
        self.extractor = load_extractor(settings.extractor, measured_by, device)
        if self.extractor.identity.to_dict() != dict(held_out.extractor):
            raise DataError(
                f"sweep: {self.extractor.identity.title} is another network than at the sweep's start; begin a new sweep"
            )
        self.reference: Reference = read_reference(references, held_out.reference)
        self.places = by_image(list_pictures(encodings))
        self.conditions = Conditions(encodings, tokens_of)
        self.stored = StoredPictures(encodings)

    def measure(self, average: Mapping[str, Tensor]) -> tuple[float, bytes]:
        """The figure and the picture. The weights are copied: the network in training is never run."""
        network = initial_network(self.config).to(self.device).eval()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(average[name])
        model = Model(network, self.config.schedule, self.config.prediction)
        model = model.on(self.device, SpeedConfig(precision=self.config.compute.precision))
        names = self.held_out.conditions
        drawn = torch.cat([self._drawn(model, names[i : i + _ROWS]) for i in range(0, len(names), _ROWS)])
        figure = frechet_distance(FeatureStatistics.of(self.extractor.features(drawn).numpy()), self.reference)
        return figure, self._png(drawn)

    def _drawn(self, model: Model, names: Sequence[str]) -> Tensor:
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
