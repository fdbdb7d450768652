"""Which networks measure an evaluation: found once, by name and never another instead, with what stands beside figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from semantica.evaluation.requests import content_hash
from semantica.evaluation.settings import EvaluationConfig
from semantica.metrics.extractors import ExtractorIdentity, Found, resolve

ENCODER = "encoder"


@dataclass(frozen=True)
class Networks:
    """found: weights by name, but of the encoder, which comes with the checkpoint. columns: name -> sub-folder of its features."""

    found: Mapping[str, Found]
    perceptual: tuple[str, ...]
    encoder: Mapping[str, Any]  # an EncoderConfig
    encoder_identity: Mapping[str, Any]
    identities: Mapping[str, ExtractorIdentity]
    columns: Mapping[str, str] = field(default_factory=dict)


def find_networks(settings: EvaluationConfig, encoder: Mapping[str, Any], encoder_identity: Mapping[str, Any]) -> Networks:
    """The networks that the settings name. Raises WeightsError, naming file and place, for one whose weights are not here."""
    ordered: list[str] = [*settings.extractor, *settings.perceptual]
    others = [name for name in ordered if name != ENCODER]
    found = {name: resolve(name, local_folder=settings.weights, allow_network=settings.allow_network) for name in others}
    identities = {name: one.identity for name, one in found.items()}
    if ENCODER in settings.extractor:
        identities[ENCODER] = ExtractorIdentity(
            name=ENCODER,
            title=f"{encoder_identity['name']} at {encoder_identity['image_px']} px",
            figure="FD (encoder)",
            weights_sha256=encoder_identity["weights_sha256"],
            resize="bicubic, antialiased",
            dim=encoder_identity["pooled_dim"],
        )
    keys = {name: identities[name].to_dict() if name != ENCODER else dict(encoder_identity) for name in ordered}
    columns = {name: f"{name}-{content_hash(key)[:8]}" for name, key in keys.items()}
    return Networks(found, settings.perceptual, encoder, encoder_identity, identities, columns)
