"""Which networks measure an evaluation: located once, by name and never another instead, and loaded where they measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from semantica.config import from_dict
from semantica.encoders.encoder import EncoderIdentity, load_encoder
from semantica.encoders.settings import EncoderConfig
from semantica.evaluation.requests import content_hash
from semantica.evaluation.settings import EvaluationConfig
from semantica.measure.networks.extractors import (
    ENCODER,
    ExtractorIdentity,
    FeatureExtractor,
    NetworkWeights,
    PerceptualNet,
    encoder_features,
    encoder_identity,
    identity_of,
    load_features,
    load_perceptual,
    resolve,
    resolve_available,
)


@dataclass(frozen=True)
class Networks:
    """weights: by name, but of the encoder, which comes with the checkpoint. columns: name -> sub-folder of its features."""

    weights: Mapping[str, NetworkWeights]
    perceptual: tuple[str, ...]
    encoder: Mapping[str, Any]  # an EncoderConfig
    encoder_identity: Mapping[str, Any]
    identities: Mapping[str, ExtractorIdentity]
    columns: Mapping[str, str] = field(default_factory=dict)

    def load(self, name: str, device: str, batch_size: int) -> FeatureExtractor | PerceptualNet:
        """The network on a device. Raises WeightsError for another encoder than the one that made the encodings."""
        if name in self.perceptual:
            return load_perceptual(self.weights[name], device, batch_size)
        if name != ENCODER:
            return load_features(self.weights[name], device, batch_size)
        expected = EncoderIdentity.from_dict(dict(self.encoder_identity))
        encoder = load_encoder(from_dict(EncoderConfig, dict(self.encoder)), device, expected=expected)
        return encoder_features(encoder, batch_size)


_USUAL_EXTRACTORS = ("inception", ENCODER)
_USUAL_PERCEPTUAL = ("lpips-alex", "st-lpips-alex")


def chosen_networks(settings: EvaluationConfig) -> tuple[EvaluationConfig, list[str]]:
    """(the settings with every network named, a sentence for each usual one that is left out because its weights are not here).

    What the settings name stays as it is.
    """
    wanted = {"extractor": _USUAL_EXTRACTORS, "perceptual": _USUAL_PERCEPTUAL}
    open_fields = {name: usual for name, usual in wanted.items() if getattr(settings, name) is None}
    names = [name for usual in open_fields.values() for name in usual if name != ENCODER]
    available, absent = resolve_available(names, local_folder=settings.weights, allow_network=settings.allow_network)
    here = {ENCODER, *(one.name for one in available)}
    filled = {field: tuple(name for name in usual if name in here) for field, usual in open_fields.items()}
    notes = [f"{one.name} was not measured: {one.reason}" for one in absent]
    return replace(settings, **filled), notes  # type: ignore[arg-type]


def usual_networks(*, inception: bool, perceptual: bool) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
    """(extractors, at most one perceptual net, a sentence for each that is left out) of those whose weights are here.

    The encoder is always one of the extractors.
    """
    here, absent = resolve_available([name for name in _USUAL_EXTRACTORS if name != ENCODER] if inception else [])
    nets, absent_nets = resolve_available(_USUAL_PERCEPTUAL if perceptual else [])
    notes = [f"{identity_of(one.name).figure} was not computed: {one.reason}." for one in (*absent, *absent_nets)]
    return (ENCODER, *(one.name for one in here)), tuple(one.name for one in nets[:1]), notes


def find_networks(settings: EvaluationConfig, encoder: Mapping[str, Any], own: Mapping[str, Any]) -> Networks:
    """The networks that the settings name; encoder, own: EncoderConfig and identity of the checkpoint's encoder, as plain values.

    Raises WeightsError, naming file and place, for a network whose weights are not here.
    """
    extractors, perceptual = settings.extractor or (), settings.perceptual or ()
    ordered: list[str] = [*extractors, *perceptual]
    others = [name for name in ordered if name != ENCODER]
    weights = {name: resolve(name, local_folder=settings.weights, allow_network=settings.allow_network) for name in others}
    identities = {name: one.identity for name, one in weights.items()}
    if ENCODER in extractors:
        identities[ENCODER] = encoder_identity(EncoderIdentity.from_dict(dict(own)))
    keys = {name: identities[name].to_dict() if name != ENCODER else dict(own) for name in ordered}
    columns = {name: f"{name}-{content_hash(key)[:8]}" for name, key in keys.items()}
    return Networks(weights, perceptual, encoder, own, identities, columns)
