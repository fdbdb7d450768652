"""Features -> figures: the protocol of an evaluation, pure. A shell in distributed/ runs the extractors in its actors.

Pictures are compared at the resolution the model draws at: real ones are reduced to it first, so that no set differs by its size.
The *reference* is every held-out picture that is no conditioning image; *Copy* repeats each conditioning image as often as it was
sampled; *train* are training pictures, as many as samples of one w; *noise* is Gaussian noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semantica.errors import DataError
from semantica.generation.generate import to_pixels
from semantica.keyed_random import keyed_generator
from semantica.measure.frechet import FeatureStatistics, frechet_distance
from semantica.measure.similarity import OwnOther, own_and_other


def noise_picture(seed: int, index: int, resolution_px: int) -> UInt8[Tensor, "3 h w"]:
    """The index-th picture of Gaussian noise: what a sampler starts from, shown as a picture."""
    generator = keyed_generator("noise picture", seed, index)
    return to_pixels(torch.randn((1, 3, resolution_px, resolution_px), generator=generator))[0]


@dataclass(frozen=True)
class GuidanceFigures:
    """What was measured for the samples of one guidance weight w."""

    guidance: float
    num_samples: int
    frechet: float
    fid: float | None
    perceptual: float | None
    similarity: OwnOther


@dataclass(frozen=True)
class Figures:
    """Every figure of an evaluation. frechet: of each set without a w ("noise", "train", "copy") in the encoder's features."""

    by_guidance: tuple[GuidanceFigures, ...]
    frechet: Mapping[str, float]
    fid_copy: float | None
    num_reference: int
    num_train: int
    num_conditions: int

    def at(self, guidance: float) -> GuidanceFigures:
        """The figures of the weight that is `guidance`. Raises DataError when nothing was sampled there."""
        for figures in self.by_guidance:
            if math.isclose(figures.guidance, guidance, rel_tol=1e-6, abs_tol=1e-6):  # stored as float32
                return figures
        drawn = ", ".join(f"{f.guidance:g}" for f in self.by_guidance)
        raise DataError(f"evaluate.guidance is {guidance:g}, but samples were drawn at w = {drawn} only")


def compute_figures(features: pa.Table, corpus_mean: Float[np.ndarray, " d"] | None) -> Figures:
    """The figures of a FEATURES table; `corpus_mean` is subtracted before cosines (None: the plain cosine)."""
    frame = features.to_pandas()
    groups = dict(list(frame.groupby("set")))
    for needed in ("reference", "conditions", "samples"):
        if needed not in groups:
            raise DataError(f"evaluate: there are no pictures in the set {needed!r}, so nothing can be compared")
    reference = FeatureStatistics.of(_stack(groups["reference"]["pooled"]))
    inception_reference = _statistics(groups["reference"]["inception"])
    conditions = groups["conditions"]
    index = {name: i for i, name in enumerate(conditions["name"])}
    condition_features = _stack(conditions["pooled"])
    by_guidance = []
    samples = groups["samples"]
    for guidance, drawn in samples.groupby("guidance"):
        own = np.array([index[c] for c in drawn["condition"]])
        pooled = _stack(drawn["pooled"])
        perceptual = drawn["perceptual"].dropna()
        by_guidance.append(
            GuidanceFigures(
                guidance=float(guidance),
                num_samples=len(drawn),
                frechet=frechet_distance(FeatureStatistics.of(pooled), reference),
                fid=_distance(_statistics(drawn["inception"]), inception_reference),
                perceptual=float(perceptual.mean()) if len(perceptual) == len(drawn) else None,
                similarity=own_and_other(pooled, condition_features, own, corpus_mean),
            )
        )
    # As many copies as samples of one w, so that both are compared at one n.
    first = next(iter(samples.groupby("guidance")))[1]
    copied = np.array([index[c] for c in first["condition"]])
    frechet = {"copy": frechet_distance(FeatureStatistics.of(condition_features[copied]), reference)}
    for name in ("train", "noise"):
        if name in groups:
            frechet[name] = frechet_distance(FeatureStatistics.of(_stack(groups[name]["pooled"])), reference)
    copy_inception = conditions["inception"].iloc[copied] if conditions["inception"].notna().all() else conditions["inception"]
    return Figures(
        by_guidance=tuple(by_guidance),
        frechet=frechet,
        fid_copy=_distance(_statistics(copy_inception), inception_reference),
        num_reference=reference.n,
        num_train=len(groups.get("train", ())),
        num_conditions=len(conditions),
    )


def _stack(column: Any) -> Float[np.ndarray, "n d"]:
    return np.stack([np.asarray(v, np.float32) for v in column])


def _statistics(column: Any) -> FeatureStatistics | None:
    """None unless every picture of the set has these features."""
    return FeatureStatistics.of(_stack(column)) if len(column) and column.notna().all() else None


def _distance(a: FeatureStatistics | None, b: FeatureStatistics | None) -> float | None:
    return None if a is None or b is None else frechet_distance(a, b)
