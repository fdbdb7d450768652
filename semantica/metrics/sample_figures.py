"""The figures of samples that jobs.generate drew, each with what it depends on, as the manifests of samples and encodings say it.

In come the computed `Figures` and the two manifests; out come the report's figures. What was not drawn (copies of conditioning
images, training pictures, noise) has no w, steps, EMA or seed beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from semantica.config import from_dict
from semantica.data.dataset import Manifest
from semantica.diffusion.settings import GuidanceConfig, SamplerConfig
from semantica.encoders.encoder import EncoderIdentity
from semantica.measure.networks.extractors import ExtractorIdentity, encoder_identity, identity_of
from semantica.metrics.evaluate import Figures, GuidanceFigures
from semantica.metrics.settings import EvaluateConfig
from semantica.report.page import Figure
from semantica.report.protocol import SMALL_N, Protocol

_SAMPLERS = {"ddpm": "DDPM", "ddim": "DDIM", "dpm_solver": "DPM-Solver++(2M)"}


def sampler_words(config: Mapping[str, Any]) -> str:
    """The sampler of a manifest of samples in words, with what goes beyond the paper's guidance."""
    sampler, beyond = from_dict(SamplerConfig, dict(config["sampler"])), from_dict(GuidanceConfig, dict(config["beyond"]))
    parts = [_SAMPLERS[sampler.name], f"{sampler.num_steps} steps"]
    parts += [f"equal in {sampler.spacing}"] if sampler.spacing else []
    parts += [f"interpolation {sampler.interpolation:g}"] if sampler.name == "ddpm" else []
    parts.append("x_hat clipped" if sampler.clip else "x_hat not clipped")
    parts += [f"guidance {name} {value}" for name, value in vars(beyond).items() if value != getattr(GuidanceConfig(), name)]
    parts += [_asked(config)] if _asked(config) else []
    return ", ".join(parts)


def sample_figures(
    figures: Figures, config: EvaluateConfig, drawn: Manifest, source: Manifest, perceptual_net: str
) -> Iterator[Figure]:
    """The figures at the w of `config`. perceptual_net: which of PERCEPTUAL_NAMES was used, "" for none."""
    at = figures.at(config.guidance)
    encoder = encoder_identity(EncoderIdentity.from_dict(dict(source.facts["encoder"])))
    plain = Protocol(resolution_px=drawn.facts["resolution_px"], num_samples=at.num_samples, num_reference=figures.num_reference)
    small = " Small n: compare within this table only." if at.num_samples < SMALL_N else ""
    fd = "Fréchet distance to held-out real pictures, in the encoder's pooled features, of "
    by_encoder, sampled = _by(plain, encoder), _sampled(plain, at, drawn, figures.num_conditions)
    yield Figure(name="fd_samples", value=at.frechet, explanation=f"{fd}the samples.{small}", protocol=_by(sampled, encoder))
    others = (
        ("copy", at.num_samples, "the conditioning images themselves, each as often as it was sampled"),
        ("train", figures.num_train, "training pictures"),
        ("noise", at.num_samples, "pictures of Gaussian noise"),
    )
    for name, count, what in others:
        if name in figures.frechet:
            stated = replace(by_encoder, num_samples=count)
            yield Figure(name=f"fd_{name}", value=figures.frechet[name], explanation=f"{fd}{what}.", protocol=stated)
    yield from _similarity(at, config, replace(_by(sampled, encoder), num_reference=None))
    inception = identity_of("inception")
    for name, value, stated in (("fid_samples", at.fid, sampled), ("fid_copy", figures.fid_copy, plain)):
        if value is not None and at.fid is not None:
            text = f"Fréchet distance in Inception features.{small}"
            yield Figure(name=name, value=value, explanation=text, protocol=_by(stated, inception))
    if at.perceptual is not None:
        text = "Mean distance of a sample to its conditioning image; higher is more different."
        stated = _by(replace(sampled, num_reference=None), identity_of(perceptual_net))
        yield Figure(name="perceptual_distance", value=at.perceptual, explanation=text, protocol=stated)


def _similarity(at: GuidanceFigures, config: EvaluateConfig, stated: Protocol) -> Iterator[Figure]:
    s = at.similarity
    cosine = replace(stated, more=f"{'mean-centred cosine' if config.centred else 'cosine'}; {stated.more}")
    over_conditions = replace(cosine, error_of="conditioning images")
    own, other = "A sample and its own conditioning image.", "A sample and the other conditioning images."
    yield Figure(name="own_similarity", value=s.own, explanation=own, protocol=cosine)
    yield Figure(name="other_similarity", value=s.other, explanation=other, protocol=cosine)
    yield Figure(
        name="similarity_difference",
        value=s.difference,
        standard_error=s.standard_error,
        explanation="Own minus other: above 0 when the model uses its condition.",
        protocol=over_conditions,
    )
    text = "Of the difference, over conditioning images."
    yield Figure(name="similarity_standard_error", value=s.standard_error, explanation=text, protocol=over_conditions)


def _by(stated: Protocol, identity: ExtractorIdentity) -> Protocol:
    return replace(stated, extractor=identity.name, resize=identity.resize)


def _sampled(plain: Protocol, at: GuidanceFigures, drawn: Manifest, num_conditions: int) -> Protocol:
    config = drawn.config
    parts = [_SAMPLERS[config["sampler"]["name"]], f"{num_conditions} conditioning images", _asked(config)]
    return replace(
        plain,
        num_steps=config["sampler"]["num_steps"],
        guidance=round(at.guidance, 6),  # stored as float32
        ema=config["use_ema"],
        seeds=[config["seed"]],
        more="; ".join(part for part in parts if part),
    )


def _asked(config: Mapping[str, Any]) -> str:
    return "" if config["similarity"] is None else f"asked for similarity {config['similarity']:g}"
