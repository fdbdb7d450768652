"""FD-DINOv2 (Stein 2023): pictures -> the CLS features of DINOv2 ViT-L/14, as the project dgm-eval computes them.

In: a folder in the hub's format (config.json, model.safetensors), loaded by transformers; only safetensors is opened. A picture is
squashed to 224 px by Pillow's bicubic filter and normalised with ImageNet's mean and std. The table of positions is for 518 px.
DINOv2's own code shrinks it with a scale of (16 + 0.1) / 37, transformers with 16 / 37. This file does as DINOv2's own code, which
published figures use.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from semantica.data.assets import cache_folder
from semantica.errors import AbsentWeights, WeightsError
from semantica.measure.networks.extractors import extractor
from semantica.measure.networks.resize import resize_as_pillow
from semantica.measure.networks.weights import WeightFile, check_file

REPOSITORY = "facebook/dinov2-large"
REVISION = "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c"
FOLDER = "dinov2-large"
TITLE = "DINOv2 ViT-L/14, CLS"
RESIZE = "224 px, bicubic of 8-bit levels (antialiased, Pillow), as dgm-eval"
FEATURE_DIM = 1024
INPUT_PX = 224
WEIGHTS = WeightFile(
    name="model.safetensors",
    sha256="399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
    num_bytes=1_217_522_888,
    what=TITLE,
    url=f"config.json and model.safetensors of {REPOSITORY} at revision {REVISION} from the hub",
)

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OFFSET = 0.1  # of a patch, in DINOv2's own code


class Dinov2Features(nn.Module):
    """The CLS token after the final layer norm, for normalised pictures of 224 px."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Float[Tensor, "b 3 224 224"]) -> Float[Tensor, "b d"]:
        features: Tensor = self.model(pixel_values=pixels).last_hidden_state[:, 0]
        return features


def find_dinov2(*, local_folder: str = "", allow_network: bool = False) -> Path:
    """The folder with DINOv2 ViT-L/14. Raises AbsentWeights without one, and WeightsError when it holds other weights."""
    from huggingface_hub import snapshot_download

    cached = cache_folder() / "weights" / FOLDER
    given = Path(local_folder).expanduser()
    places = [given / FOLDER, given, cached] if local_folder else [cached]
    for place in places:
        if (place / WEIGHTS.name).is_file():
            return check_folder(place)
    try:
        # Also called without the network, since the hub's own cache may have the files.
        files = ["config.json", WEIGHTS.name]
        snapshot = snapshot_download(REPOSITORY, revision=REVISION, allow_patterns=files, local_files_only=not allow_network)
    except Exception as error:  # noqa: BLE001 - the hub's client raises classes of its HTTP library, which change with its version
        why = f"cannot be fetched ({(str(error).strip().splitlines() or [''])[0][:160]})" if allow_network else "got none"
        raise AbsentWeights(f"{TITLE}: expected {WEIGHTS.described}, {why}; put {WEIGHTS.url} into {places[0]}") from None
    if not (Path(snapshot) / WEIGHTS.name).is_file():  # a snapshot that was fetched for its configuration only
        raise AbsentWeights(f"{TITLE}: expected {WEIGHTS.described}, got none; put {WEIGHTS.url} into {places[0]}")
    return check_folder(Path(snapshot))


def check_folder(folder: Path) -> Path:
    """Check that `folder` holds the known weights, and return it. Raises WeightsError."""
    if not (folder / "config.json").is_file():
        raise AbsentWeights(
            f"{TITLE}: expected config.json beside {folder / WEIGHTS.name}, got none; put {WEIGHTS.url} into {folder}"
        )
    return check_file(folder / WEIGHTS.name, WEIGHTS).parent


def load_dinov2(folder: Path, device: torch.device | str = "cpu") -> Dinov2Features:
    """The network in evaluation mode, in float32, with its table of positions for 224 px.

    Raises WeightsError when the folder does not hold a complete DINOv2. Does not verify which weights these are; `check_folder`
    does.
    """
    from safetensors import SafetensorError
    from transformers import Dinov2Model
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    remedy = f"put {WEIGHTS.url} there"
    try:
        # use_safetensors: a pickle in the folder is never opened.
        model, loading = Dinov2Model.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise WeightsError(f"{TITLE}: cannot load {folder} ({line}); {remedy}") from None
    if loading["missing_keys"]:
        raise WeightsError(f"{TITLE}: {folder} is not a whole checkpoint (missing {sorted(loading['missing_keys'])[:2]}); {remedy}")
    patch = _side(model.config.patch_size)
    if INPUT_PX % patch:
        raise WeightsError(f"{TITLE}: expected patches that divide {INPUT_PX} px in {folder}, got {patch} px; {remedy}")
    embeddings = model.embeddings
    embeddings.position_embeddings = nn.Parameter(positions_for(embeddings.position_embeddings.detach(), INPUT_PX // patch))
    return Dinov2Features(model.eval().requires_grad_(False).to(device))


def positions_for(table: Float[Tensor, "1 n d"], side: int) -> Float[Tensor, "1 m d"]:
    """The table of positions for side x side patches: CLS unchanged, the rest interpolated bicubically as in DINOv2's own code."""
    cls, patches = table[:, :1], table[:, 1:]
    stored = round(patches.shape[1] ** 0.5)
    if stored == side:
        return table
    grid = patches.reshape(1, stored, stored, -1).permute(0, 3, 1, 2).float()
    scale = (side + _OFFSET) / stored
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([cls, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def prepare(images: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b 3 224 224"]:
    """Resize and normalise pictures for the network."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (_MEAN, _STD))
    return (resize_as_pillow(images, INPUT_PX).float() / 255 - mean) / std


def _side(size: Any) -> int:
    return size if isinstance(size, int) else int(size[0])


@extractor("dinov2", key="fd-dinov2", figure="FD-DINOv2", resize=RESIZE, dim=FEATURE_DIM, weights=WEIGHTS, find=find_dinov2)
def _load(folder: Path, device: torch.device | str) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    return prepare, load_dinov2(check_folder(folder), device)
