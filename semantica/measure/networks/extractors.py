"""The networks that an evaluation asks for by name: where their weights are, what they are called in a report, pictures -> numbers.

In: a name of FEATURE_NAMES or PERCEPTUAL_NAMES. `resolve` says where its weights are on this machine, or raises: what is asked for
and absent is an error, and nothing is ever measured by another network instead. `resolve_available` is the explicit other way: what
there is, and for the report which were left out and why. Out: networks whose answer for a picture does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from semantica.encoders.encoder import Encoder, EncoderIdentity
from semantica.errors import AbsentWeights, ConfigError, DataError
from semantica.measure.networks import dinov2, inception, perceptual
from semantica.measure.networks.inception_network import FEATURE_DIM as INCEPTION_DIM
from semantica.measure.networks.perceptual import LPIPS_NETS
from semantica.measure.networks.weights import WeightFile, find_file

FEATURE_NAMES = ("inception", "inception-clean", "dinov2", "encoder")
PERCEPTUAL_NAMES = ("lpips-alex", "lpips-vgg", "lpips-squeeze", "st-lpips-alex")

_LPIPS_RESIZE = "none: pictures at their own size"


@dataclass(frozen=True)
class ExtractorIdentity:
    """What makes two figures comparable. title: the network, for people; figure: what its distance is called; dim: of a feature.

    A perceptual net gives distances, no features: its dim is 0.
    """

    name: str
    title: str
    figure: str
    weights_sha256: str
    resize: str
    dim: int

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ExtractorIdentity:
        """The identity from plain values."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest or a report."""
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """A network whose weights are on this machine: `path` is their file, for DINOv2 their folder."""

    name: str
    path: str
    identity: ExtractorIdentity


@dataclass(frozen=True)
class Skipped:
    """A network that was left out on purpose, because its weights are not here: which file to put where."""

    name: str
    reason: str


def identity_of(name: str) -> ExtractorIdentity:
    """The identity of each network but "encoder", without its weights: their hash is known. Raises ConfigError for other names."""
    _check_name(name)
    if name == "inception":
        figure, resize = "FID", inception.RESIZE
        return ExtractorIdentity(name, inception.EXTRACTOR, figure, inception.WEIGHTS.sha256, resize, INCEPTION_DIM)
    if name == "inception-clean":
        figure, resize = "FID (clean resize)", inception.CLEAN_RESIZE
        return ExtractorIdentity(name, inception.EXTRACTOR, figure, inception.WEIGHTS.sha256, resize, INCEPTION_DIM)
    if name == "dinov2":
        return ExtractorIdentity(name, dinov2.TITLE, "FD-DINOv2", dinov2.WEIGHTS.sha256, dinov2.RESIZE, dinov2.FEATURE_DIM)
    file = _perceptual_file(name)
    return ExtractorIdentity(name, file.what, "ST-LPIPS" if name == "st-lpips-alex" else "LPIPS", file.sha256, _LPIPS_RESIZE, 0)


def resolve(name: str, *, local_folder: str = "", allow_network: bool = False) -> Found:
    """Where the weights of `name` are, their hash checked: local_folder, then the caches, then the network where it is allowed.

    Raises ConfigError for an unknown name, WeightsError for other weights under the name, and AbsentWeights that says which file
    (name, SHA-256, size) to put where.
    """
    identity = identity_of(name)
    if name == "dinov2":
        path = dinov2.find_dinov2(local_folder=local_folder, allow_network=allow_network)
    else:
        file = inception.WEIGHTS if name in FEATURE_NAMES else _perceptual_file(name)
        path = find_file(file, local_folder=local_folder, allow_network=allow_network)
    return Found(name, str(path), identity)


def resolve_available(
    names: Sequence[str], *, local_folder: str = "", allow_network: bool = False
) -> tuple[tuple[Found, ...], tuple[Skipped, ...]]:
    """Those of `names` whose weights are here, and those that are left out. Only absence is forgiven: see `resolve`."""
    found, skipped = list[Found](), list[Skipped]()
    for name in names:
        try:
            found.append(resolve(name, local_folder=local_folder, allow_network=allow_network))
        except AbsentWeights as error:
            skipped.append(Skipped(name, str(error)))
    return tuple(found), tuple(skipped)


class FeatureExtractor:
    """Pictures -> features, by one network on one device. `identity` names it."""

    def __init__(
        self,
        identity: ExtractorIdentity,
        prepare: Callable[[Tensor], Tensor],
        network: Callable[[Tensor], Tensor],
        device: torch.device | str,
        batch_size: int,
    ) -> None:
        self.identity, self.device, self.batch_size = identity, torch.device(device), batch_size
        self._prepare, self._network = prepare, network

    def features(self, images: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b d"]:
        """The features of pictures of one size (RGB, 0-255), on the CPU."""
        parts = [torch.zeros(0, self.identity.dim)]
        for start in range(0, len(images), self.batch_size):
            chunk = images[start : start + self.batch_size]
            with torch.inference_mode(), _whole_float32():
                values = self._network(_filled(self._prepare(chunk.to(self.device)), self.batch_size))
            parts.append(values[: len(chunk)].float().cpu())
        return torch.cat(parts)


class PerceptualNet:
    """Two pictures -> their distance, by one network on one device. `identity` names it."""

    def __init__(self, identity: ExtractorIdentity, network: torch.nn.Module, device: torch.device | str, batch_size: int) -> None:
        self.identity, self.device, self.batch_size = identity, torch.device(device), batch_size
        self._network = network.to(self.device)

    def distances(self, a: UInt8[Tensor, "b 3 h w"], b: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, " b"]:
        """The distance of each pair of pictures of one size (RGB, 0-255), on the CPU. Raises DataError when they are too small."""
        if a.shape != b.shape:
            raise DataError(
                f"{self.identity.title}: pairs must be of one size, got {tuple(a.shape)} and {tuple(b.shape)}; resize first"
            )
        parts = [torch.zeros(0)]
        for start in range(0, len(a), self.batch_size):
            pair = [images[start : start + self.batch_size].to(self.device) for images in (a, b)]
            with _whole_float32():
                values = perceptual.perceptual_distance(self._network, *(_filled(images, self.batch_size) for images in pair))
            parts.append(values[: len(pair[0])].cpu())
        return torch.cat(parts)


def load_features(found: Found, device: torch.device | str = "cpu", batch_size: int = 32) -> FeatureExtractor:
    """The extractor, from weights whose hash is checked again. Raises WeightsError when they are others."""
    path = Path(found.path)
    if found.name in ("inception", "inception-clean"):
        prepare = inception.prepare if found.name == "inception" else inception.prepare_clean
        return FeatureExtractor(found.identity, prepare, inception.load_inception(path, device), device, batch_size)
    if found.name == "dinov2":
        folder = dinov2.checked_folder(path)
        return FeatureExtractor(found.identity, dinov2.prepare, dinov2.load_dinov2(folder, device), device, batch_size)
    raise ConfigError(f"extractor: expected one of {', '.join(FEATURE_NAMES[:-1])}, got {found.name!r}; it has no features")


def encoder_features(encoder: Encoder, batch_size: int = 32) -> FeatureExtractor:
    """The extractor "encoder": the pooled embedding of the run's own encoder, with its own preprocessing."""
    return FeatureExtractor(encoder_identity(encoder.identity), encoder.fit, _Pooled(encoder), encoder.device, batch_size)


def encoder_identity(own: EncoderIdentity) -> ExtractorIdentity:
    """The identity of "encoder", from what a manifest of encodings says of it."""
    seen = own.preprocessing
    cut = f", the middle {seen.image_px} px" if seen.resize_px != seen.image_px else ""
    resize = f"{seen.resize_px} px, {seen.resample} (antialiased){cut}, as the encoder's own"
    return ExtractorIdentity("encoder", own.name, "FD (encoder)", own.weights_sha256, resize, own.pooled_dim)


def load_perceptual(found: Found, device: torch.device | str = "cpu", batch_size: int = 32) -> PerceptualNet:
    """The perceptual net, from weights whose hash is checked again. Raises WeightsError when they are others."""
    path = Path(found.path)
    if found.name not in PERCEPTUAL_NAMES:
        raise ConfigError(
            f"perceptual net: expected one of {', '.join(PERCEPTUAL_NAMES)}, got {found.name!r}; it gives no distance"
        )
    if found.name == "st-lpips-alex":
        network: torch.nn.Module = perceptual.load_shift_tolerant_lpips(path)
    else:
        network = perceptual.load_lpips(path, found.name.removeprefix("lpips-"))
    return PerceptualNet(found.identity, network, device, batch_size)


class _Pooled:
    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def __call__(self, fitted: Tensor) -> Tensor:
        return self.encoder.encode_fitted(fitted).pooled


def _check_name(name: str) -> None:
    if name == "encoder":
        raise ConfigError('extractor: "encoder" is the encoder of the encodings, whose weights come with their configuration')
    if name not in FEATURE_NAMES + PERCEPTUAL_NAMES:
        known = ", ".join(FEATURE_NAMES + PERCEPTUAL_NAMES)
        raise ConfigError(f"extractor: expected one of {known}, got {name!r}; correct the name")


def _perceptual_file(name: str) -> WeightFile:
    return perceptual.ST_LPIPS_WEIGHTS if name == "st-lpips-alex" else LPIPS_NETS[name.removeprefix("lpips-")].trunk


def _filled(images: Tensor, batch_size: int) -> Tensor:
    """Pictures up to batch_size, the last one repeated: kernels are chosen by shape, and round differently."""
    return torch.cat([images, images[-1:].expand(batch_size - len(images), -1, -1, -1)]) if len(images) < batch_size else images


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Without TF32, bfloat16 passes and autotuned kernels, which move a figure in its third decimal from machine to machine."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
