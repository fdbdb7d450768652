"""Which networks measure an evaluation: found once, by name and never another instead, with what stands beside figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from semantica.encoders.encoder import EncoderIdentity
from semantica.evaluation.requests import content_hash
from semantica.evaluation.settings import EvaluationConfig
from semantica.metrics.extractors import ExtractorIdentity, Found, encoder_identity, resolve

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


def find_networks(settings: EvaluationConfig, encoder: Mapping[str, Any], own: Mapping[str, Any]) -> Networks:
    """The networks that the settings name; encoder, own: EncoderConfig and identity of the checkpoint's encoder, as plain values.

    Raises WeightsError, naming file and place, for a network whose weights are not here.
    """
    ordered: list[str] = [*settings.extractor, *settings.perceptual]
    others = [name for name in ordered if name != ENCODER]
    found = {name: resolve(name, local_folder=settings.weights, allow_network=settings.allow_network) for name in others}
    identities = {name: one.identity for name, one in found.items()}
    if ENCODER in settings.extractor:
        identities[ENCODER] = encoder_identity(EncoderIdentity.from_dict(dict(own)))
    keys = {name: identities[name].to_dict() if name != ENCODER else dict(own) for name in ordered}
    columns = {name: f"{name}-{content_hash(key)[:8]}" for name, key in keys.items()}
    return Networks(found, settings.perceptual, encoder, own, identities, columns)
