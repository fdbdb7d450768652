"""The registry of the networks that measure pictures. Each network has a name; its file says how it is found, loaded and called.

`@extractor("inception", ...)` registers a loader of features, and `@perceptual("lpips-alex", ...)` a loader of a distance, both in
a file of this package. `resolve` returns where the weights of a name are on this machine, or raises: a missing network is never
replaced by another. `resolve_available` returns those of several names that are here, and for the report why the others are not.
The result of a loaded network for a picture does not depend on the other pictures of its batch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from semantica.encoders.encoder import Encoder, EncoderIdentity
from semantica.errors import AbsentWeights, ConfigError, DataError
from semantica.measure.networks.weights import WeightFile, find_file

ENCODER = "encoder"  # the checkpoint's own encoder, whose weights its configuration names
ENCODER_KEY = "fd-encoder"

Find: TypeAlias = Callable[..., Path]  # (local_folder=, allow_network=) -> where the weights are
FeatureLoader: TypeAlias = Callable[[Path, torch.device | str], tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]
DistanceLoader: TypeAlias = Callable[[Path], torch.nn.Module]


@dataclass(frozen=True)
class ExtractorIdentity:
    """Two figures can be compared when their identities are equal.

    title: the network's name for people. figure: the name of its distance. dim: of a feature; 0 for a perceptual net, which gives
    distances and no features.
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
class NetworkWeights:
    """A network whose weights are on this machine: `path` is their file, for DINOv2 their folder."""

    name: str
    path: str
    identity: ExtractorIdentity


@dataclass(frozen=True)
class AbsentNetwork:
    """A network that was left out because its weights are not here. reason: which file is missing, and where to put it."""

    name: str
    reason: str


@dataclass(frozen=True)
class _Registered:
    """One network: the name of its figure in report.json, its identity, and how it is found and loaded."""

    key: str
    identity: ExtractorIdentity
    find: Find
    load: Callable[..., Any]

    @property
    def has_features(self) -> bool:
        return self.identity.dim > 0


_REGISTRY: dict[str, _Registered] = {}


def extractor(
    name: str, *, key: str, figure: str, resize: str, dim: int, weights: WeightFile, find: Find | None = None
) -> Callable[[FeatureLoader], FeatureLoader]:
    """Register a loader (path, device) -> (prepare, network) under `name`.

    key: the its name in report.json ("fid"). figure: the name for people. weights: the file that identifies the network.
    find: returns where the weights are; by default, the file itself.
    """
    identity = ExtractorIdentity(name, weights.what, figure, weights.sha256, resize, dim)

    def register(load: FeatureLoader) -> FeatureLoader:
        _add(_Registered(key, identity, find or _finder(weights), load))
        return load

    return register


def perceptual(name: str, *, figure: str, weights: WeightFile) -> Callable[[DistanceLoader], DistanceLoader]:
    """Register a loader (path) -> module of two pictures in [-1, 1] under `name`."""
    identity = ExtractorIdentity(name, weights.what, figure, weights.sha256, "none: pictures at their own size", 0)

    def register(load: DistanceLoader) -> DistanceLoader:
        _add(_Registered(name, identity, _finder(weights), load))
        return load

    return register


def _add(network: _Registered) -> None:
    known = _REGISTRY.get(network.identity.name)
    if known is not None and known.identity != network.identity:
        raise ConfigError(f"extractor: two networks are called {network.identity.name!r}; rename one")
    _REGISTRY[network.identity.name] = network


def _finder(weights: WeightFile) -> Find:
    def find(*, local_folder: str = "", allow_network: bool = False) -> Path:
        return find_file(weights, local_folder=local_folder, allow_network=allow_network)

    return find


def _look_up(name: str) -> _Registered:
    if name == ENCODER:
        raise ConfigError('extractor: "encoder" is the encoder of the encodings, whose weights come with their configuration')
    known = _all()
    if name not in known:
        raise ConfigError(f"extractor: expected one of {', '.join((*known, ENCODER))}, got {name!r}; correct the name")
    return known[name]


def _all() -> dict[str, _Registered]:
    """Every network, after each file of this package has registered its own."""
    package = importlib.import_module("semantica.measure.networks")
    for module in pkgutil.iter_modules(package.__path__, "semantica.measure.networks."):
        importlib.import_module(module.name)
    return _REGISTRY


def feature_names() -> tuple[str, ...]:
    """The names that --extractor takes."""
    return (*(name for name, network in sorted(_all().items()) if network.has_features), ENCODER)


def perceptual_names() -> tuple[str, ...]:
    """The names that --perceptual takes."""
    return tuple(name for name, network in sorted(_all().items()) if not network.has_features)


def key_of(name: str) -> str:
    """The name of a network's figure in report.json."""
    return ENCODER_KEY if name == ENCODER else _look_up(name).key


def identity_of(name: str) -> ExtractorIdentity:
    """The identity of a network other than "encoder". Needs no weights, since their hash is known. Raises ConfigError otherwise."""
    return _look_up(name).identity


def resolve(name: str, *, local_folder: str = "", allow_network: bool = False) -> NetworkWeights:
    """Find the weights of `name` and check their hash: in local_folder, then the caches, then the network if it is allowed.

    Raises ConfigError for an unknown name, WeightsError for a file with another hash, and AbsentWeights, which says which file
    (name, SHA-256, size) to put where.
    """
    network = _look_up(name)
    path = network.find(local_folder=local_folder, allow_network=allow_network)
    return NetworkWeights(name, str(path), network.identity)


def resolve_available(
    names: Sequence[str], *, local_folder: str = "", allow_network: bool = False
) -> tuple[tuple[NetworkWeights, ...], tuple[AbsentNetwork, ...]]:
    """The networks of `names` whose weights are here, and the ones left out. Raises as `resolve`, but not for missing weights."""
    here, absent = list[NetworkWeights](), list[AbsentNetwork]()
    for name in names:
        try:
            here.append(resolve(name, local_folder=local_folder, allow_network=allow_network))
        except AbsentWeights as error:
            absent.append(AbsentNetwork(name, str(error)))
    return tuple(here), tuple(absent)


class FeatureExtractor:
    """Pictures -> features, by one network on one device. `identity` names the network."""

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
                values = self._network(_pad_batch(self._prepare(chunk.to(self.device)), self.batch_size))
            parts.append(values[: len(chunk)].float().cpu())
        return torch.cat(parts)


class PerceptualNet:
    """Two pictures -> their distance, by one network on one device. `identity` names the network."""

    def __init__(self, identity: ExtractorIdentity, network: torch.nn.Module, device: torch.device | str, batch_size: int) -> None:
        self.identity, self.device, self.batch_size = identity, torch.device(device), batch_size
        self._network = network.to(self.device)

    def distances(self, a: UInt8[Tensor, "b 3 h w"], b: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, " b"]:
        """The distance of each pair of pictures of one size (RGB, 0-255), on the CPU. Raises DataError for too small pictures."""
        if a.shape != b.shape:
            raise DataError(
                f"{self.identity.title}: pairs must be of one size, got {tuple(a.shape)} and {tuple(b.shape)}; resize first"
            )
        parts = [torch.zeros(0)]
        for start in range(0, len(a), self.batch_size):
            pair = [images[start : start + self.batch_size].to(self.device) for images in (a, b)]
            with _whole_float32():
                values = perceptual_distance(self._network, *(_pad_batch(images, self.batch_size) for images in pair))
            parts.append(values[: len(pair[0])].cpu())
        return torch.cat(parts)


def load_features(weights: NetworkWeights, device: torch.device | str = "cpu", batch_size: int = 32) -> FeatureExtractor:
    """Load the extractor; the hash of the weights is checked again. Raises WeightsError for another hash."""
    network = _look_up(weights.name)
    if not network.has_features:
        known = ", ".join(feature_names()[:-1])
        raise ConfigError(f"extractor: expected one of {known}, got {weights.name!r}; it has no features")
    prepare, run = network.load(Path(weights.path), device)
    return FeatureExtractor(weights.identity, prepare, run, device, batch_size)


def encoder_features(encoder: Encoder, batch_size: int = 32) -> FeatureExtractor:
    """The extractor "encoder": the pooled embedding of the run's encoder, with the encoder's own preprocessing."""
    return FeatureExtractor(encoder_identity(encoder.identity), encoder.fit, _Pooled(encoder), encoder.device, batch_size)


def encoder_identity(own: EncoderIdentity) -> ExtractorIdentity:
    """The identity of the extractor "encoder", from the encoder's identity in a manifest of encodings."""
    seen = own.preprocessing
    cut = f", the middle {seen.image_px} px" if seen.resize_px != seen.image_px else ""
    resize = f"{seen.resize_px} px, {seen.resample} (antialiased){cut}, as the encoder's own"
    return ExtractorIdentity("encoder", own.name, "FD (encoder)", own.weights_sha256, resize, own.pooled_dim)


def load_perceptual(weights: NetworkWeights, device: torch.device | str = "cpu", batch_size: int = 32) -> PerceptualNet:
    """Load the perceptual net; the hash of the weights is checked again. Raises WeightsError for another hash."""
    network = _look_up(weights.name)
    if network.has_features:
        known = ", ".join(perceptual_names())
        raise ConfigError(f"perceptual net: expected one of {known}, got {weights.name!r}; it gives no distance")
    return PerceptualNet(weights.identity, network.load(Path(weights.path)), device, batch_size)


def perceptual_distance(model: torch.nn.Module, a: UInt8[Tensor, "b 3 h w"], b: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Distance of each pair of RGB pictures (0-255), at their own size: 0 for equal pictures, about 0.5 for unrelated ones.

    Raises DataError for pictures that the net's pools would shrink to nothing.
    """
    if min(a.shape[2:]) < model.min_px:  # type: ignore[operator]
        raise DataError(
            f"perceptual distance: pictures must be at least {model.min_px} px per side for this net, got {a.shape[3]}x{a.shape[2]}"
            "; leave it out or draw larger pictures"
        )
    with torch.inference_mode():
        distance: Tensor = model(a.float() / 127.5 - 1, b.float() / 127.5 - 1)
    return distance


class _Pooled:
    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def __call__(self, fitted: Tensor) -> Tensor:
        return self.encoder.encode_fitted(fitted).pooled


def _pad_batch(images: Tensor, batch_size: int) -> Tensor:
    """Fill the batch to batch_size by repeating the last picture: kernels are chosen by shape, and round differently."""
    return torch.cat([images, images[-1:].expand(batch_size - len(images), -1, -1, -1)]) if len(images) < batch_size else images


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Turn off TF32, bfloat16 passes and autotuned kernels, with which a figure differs in its third decimal between machines."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
