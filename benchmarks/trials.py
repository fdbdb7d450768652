"""One training of one variant at one seed -> the figures of its samples, in plain data.

The training is that of semantica train in this process: the same loop, loader and recipe. At several of its steps the EMA
weights draw a sample for each conditioning image, with noise named by the image alone, so that all variants and seeds start from
the same noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from benchmarks.domains import EvaluationSet, Picture, Run, conditioning
from benchmarks.variants import FINAL, FRECHET, PERCEPTUAL, SIMILARITY, Variant, address
from benchmarks.verdicts import Figure
from semantica.data.pictures import decode
from semantica.denoiser.sizes import num_parameters, training_flops
from semantica.denoiser.uvit import UViT
from semantica.generation.generate import sample_pictures
from semantica.generation.model import Model
from semantica.generation.settings import GenerateConfig
from semantica.measure.frechet import FeatureStatistics, Reference, frechet_distance
from semantica.measure.networks.extractors import FeatureExtractor, PerceptualNet
from semantica.pairs.loader import open_pairs
from semantica.training.backend import TorchBackend
from semantica.training.checkpoint import Provenance
from semantica.training.ema import Ema
from semantica.training.feed import training_loader
from semantica.training.loop import Hooks, fit
from semantica.training.recipe import TrainConfig
from semantica.training.watch import StepReport

NUM_GROUPS = 16  # of conditioning images, for the jackknife
MAX_CLASS_GROUPS = 64  # where one image stands for a class: as many as there are classes, up to this
_ROWS = 64  # conditioning images whose tokens are in memory as float32


@dataclass
class Measurer:
    """Measures samples of the evaluation sets. extractors: the run's encoder first, whose distances decide and whose cosines are
    reported; others only at the end of a training.
    """

    sets: Mapping[str, EvaluationSet]
    pictures: Mapping[str, Picture]
    extractors: Sequence[FeatureExtractor]
    perceptual: PerceptualNet | None
    mean: Float[np.ndarray, " d"] | None  # subtracted before the cosine
    resolution_px: int
    drawing: GenerateConfig
    device: torch.device
    _references: dict[tuple[str, str], Reference] = field(default_factory=dict)
    _features: dict[str, Float[np.ndarray, " d"]] = field(default_factory=dict)

    def wanted(self, kind: str, data: str) -> list[tuple[str, int]]:
        """(conditioning image, index) of every sample: one an image, or as many in all of one image a class."""
        of = self.sets[data]
        if kind == "pictures":
            return [(name, 0) for name in of.conditions]
        copies = max(2, len(of.conditions) // len(of.classes))
        return [(name, index) for name in of.classes for index in range(copies)]

    def cell(
        self, model: Model, tokens_of: Mapping[str, Picture], kind: str, data: str, w: float, *, is_final: bool
    ) -> dict[str, Figure]:
        """Metric -> figure. tokens_of: the conditioning images with the encodings that the model was trained on."""
        wanted = self.wanted(kind, data)
        conditions = self._pixels([name for name, _ in wanted])
        pixels = conditions if kind == "copy" else self._drawn(model, tokens_of, wanted, w)
        names = [name for name, _ in wanted]
        order = {name: place for place, name in enumerate(dict.fromkeys(names))}
        most = NUM_GROUPS if kind == "pictures" else MAX_CLASS_GROUPS
        groups = np.array([order[name] for name in names]) % min(most, len(order))
        figures: dict[str, Figure] = {}
        for extractor in self.extractors if is_final else self.extractors[:1]:
            features = extractor.features(pixels).numpy()
            name = FRECHET if extractor is self.extractors[0] else f"{FRECHET} {extractor.identity.name}"
            figures[name] = frechet_figure(features, groups, self._reference(data, extractor))
            if extractor is self.extractors[0] and kind != "copy":
                figures[SIMILARITY] = mean_figure(self._cosines(features, names), groups)
        if self.perceptual is not None and is_final and kind != "copy":
            distances = self.perceptual.distances(pixels, conditions).numpy().astype(np.float64)
            figures[PERCEPTUAL] = mean_figure(distances, groups)
        return figures

    def _drawn(
        self, model: Model, tokens_of: Mapping[str, Picture], wanted: Sequence[tuple[str, int]], w: float
    ) -> UInt8[Tensor, "b 3 h w"]:
        parts = []
        for start in range(0, len(wanted), _ROWS):
            chunk = wanted[start : start + _ROWS]
            cond = conditioning([tokens_of[name] for name, _ in chunk])
            parts.append(sample_pictures(model, cond, [f"{name}/{index}" for name, index in chunk], w, self.drawing, 2 * _ROWS))
        return torch.cat(parts)

    def _pixels(self, names: Sequence[str]) -> UInt8[Tensor, "b 3 h w"]:
        return torch.stack([decode(self.pictures[name].data, self.resolution_px) for name in names])

    def _reference(self, data: str, extractor: FeatureExtractor) -> Reference:
        key = (data, extractor.identity.name)
        if key not in self._references:
            names = self.sets[data].reference
            features = [extractor.features(self._pixels(names[i : i + 1024])).numpy() for i in range(0, len(names), 1024)]
            self._references[key] = Reference.of(FeatureStatistics.of(np.concatenate(features)))
        return self._references[key]

    def _cosines(self, features: Float[np.ndarray, "n d"], names: Sequence[str]) -> Float[np.ndarray, " n"]:
        new = [name for name in dict.fromkeys(names) if name not in self._features]
        if new:
            self._features |= dict(zip(new, self.extractors[0].features(self._pixels(new)).numpy(), strict=True))
        a, b = features.astype(np.float64), np.stack([self._features[name] for name in names]).astype(np.float64)
        if self.mean is not None:
            a, b = a - self.mean, b - self.mean
        cosines: np.ndarray = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        return cosines


def frechet_figure(features: Float[np.ndarray, "n d"], groups: Int[np.ndarray, " n"], reference: Reference) -> Figure:
    """The distance of all rows to the reference, and without each group's."""
    parts = [FeatureStatistics.of(features[groups == group]) for group in range(int(groups.max()) + 1)]

    def distance(without: int | None) -> float:
        kept = [part for group, part in enumerate(parts) if group != without]
        return frechet_distance(sum(kept[1:], kept[0]), reference)

    return Figure(distance(None), tuple(distance(group) for group in range(len(parts))))


def mean_figure(values: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Figure:
    """The mean of all values, and without each group's."""
    without = tuple(float(values[groups != group].mean()) for group in range(int(groups.max()) + 1))
    return Figure(float(values.mean()), without)


def averaged(config: TrainConfig, ema: Ema) -> UViT:
    """The denoiser with the EMA weights, in eval mode."""
    network = UViT(config.denoiser)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(ema.values[name])
    return network.eval()


def run_trial(
    variant: Variant,
    config: TrainConfig,
    source: Run,
    selection: Path,
    measurer: Measurer,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train and measure. Returns plain data: figures by address, losses, and what it cost."""
    provenance = Provenance(
        encoder={"identity": source.encoder, "config": source.manifest.config["encoder"]},
        encodings=source.manifest.hash,
        selection="",
    )
    loader = training_loader(config, open_pairs(source.encodings, selection))
    tokens_of = measurer.pictures if variant.trains_on != "siglip" else source.read(measurer.pictures)
    figures: dict[str, Figure] = {}
    losses, seconds = list[tuple[int, float]](), {"drawing": 0.0}

    def on_samples(step: int, _: UViT, ema: Ema) -> None:
        is_final, started = step == config.num_steps, time.monotonic()
        model = Model(averaged(config, ema), config.schedule, config.prediction).on(measurer.device, measurer.drawing.speed)
        cells = [cell for cell in variant.cells if cell[1] in measurer.sets]
        for kind, data, w in cells if is_final else (("pictures", "held_out", 0.0),):
            found = measurer.cell(model, tokens_of, kind, data, w, is_final=is_final)
            figures.update({address(FINAL if is_final else step, kind, data, w, metric): f for metric, f in found.items()})
            shown = ", ".join(f"{metric} {f.value:.4g}" for metric, f in found.items())
            say(f"step {step}: {kind} {data} w = {w:g}: {shown}")
        seconds["drawing"] += time.monotonic() - started

    def on_report(report: StepReport) -> None:
        losses.append((report.step, report.loss))
        say(f"step {report.step}: loss {report.loss:.4f}")

    started = time.monotonic()
    fit(config, loader, provenance, Hooks(on_report, lambda _: None, on_samples), backend=TorchBackend(measurer.device))
    return {
        "figures": {place: {"value": f.value, "without": list(f.without)} for place, f in figures.items()},
        "losses": losses,
        "cost": {
            "gflop_an_image": training_flops(config.denoiser) / 1e9,
            "parameters": num_parameters(config.denoiser),
            "images_seen": config.num_steps * config.batch_size,
            "targets": loader.stream.num_draws,
            "seconds": time.monotonic() - started,
            "seconds_drawing": seconds["drawing"],
        },
    }
