"""Small checkpoints of every family with random weights, saved by transformers itself with the processor that belongs to them."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

KINDS = ("dinov2", "registers", "siglip", "siglip_tower", "siglip2", "siglip2_tower")

_DINO = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14, "mlp_ratio": 2}
_TEXT = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_TEXT |= {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16}


def vision_class(kind):
    """The transformers class that the tests compare with."""
    import transformers

    names = {"dinov2": "Dinov2Model", "registers": "Dinov2WithRegistersModel"}
    return getattr(transformers, names.get(kind) or f"{kind.removesuffix('_tower').capitalize()}VisionModel")


def save(kind, folder):
    """A checkpoint folder with config.json, model.safetensors and preprocessor_config.json."""
    import transformers as t

    torch.manual_seed(0)
    published = t.BitImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 56, "width": 56},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    fixed, naflex = t.SiglipImageProcessor(size={"height": 64, "width": 64}), t.Siglip2ImageProcessor(max_num_patches=16)
    model, processor = {
        "dinov2": lambda: (t.Dinov2Model(t.Dinov2Config(**_DINO)), published),
        "registers": lambda: (t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**_DINO)), published),
        "siglip": lambda: (t.SiglipModel(t.SiglipConfig(text_config=_TEXT, vision_config=_TOWER | {"image_size": 64})), fixed),
        "siglip_tower": lambda: (t.SiglipVisionModel(t.SiglipVisionConfig(**_TOWER, image_size=64)), fixed),
        "siglip2": lambda: (t.Siglip2Model(t.Siglip2Config(text_config=_TEXT, vision_config=_TOWER | {"num_patches": 16})), naflex),
        "siglip2_tower": lambda: (t.Siglip2VisionModel(t.Siglip2VisionConfig(**_TOWER, num_patches=16)), naflex),
    }[kind]()
    with torch.no_grad():  # as it comes, most of a network is near zero, and a mistake would not show
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    assert (folder / "preprocessor_config.json").exists()
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """kind -> folder."""
    base = tmp_path_factory.mktemp("checkpoints")
    return {kind: save(kind, base / kind) for kind in KINDS}


@pytest.fixture(scope="session")
def vision():
    """vision.save, vision.vision_class, vision.edited, vision.drawn, vision.batch_of."""
    return SimpleNamespace(save=save, vision_class=vision_class, edited=edited, drawn=drawn, batch_of=batch_of)


def edited(folder, target, changes, name="preprocessor_config.json"):
    """A copy of a checkpoint folder with some values of a JSON file changed; None removes one."""
    shutil.copytree(folder, target)
    values = json.loads((target / name).read_text()) | changes
    (target / name).write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return target


def drawn(seed, side):
    """A picture with areas, edges, fine detail and full contrast, as a PIL image."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), tuple(generator.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        (a, c), (b, d) = np.sort(generator.integers(0, side, (2, 2)), axis=1).tolist()
        colour = tuple(generator.integers(0, 256, 3).tolist())
        getattr(draw, generator.choice(["rectangle", "ellipse", "line"]))((a, b, c, d), fill=colour)
    pixels = np.asarray(image).astype(np.int16)
    pixels[: side // 3] += generator.integers(-40, 41, (side // 3, side, 3)).astype(np.int16)  # texture
    pixels[-side // 8 :, ::2] = 255  # stripes at the limit of resolution
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def batch_of(images):
    """PIL images of one size as (B, 3, H, W) uint8."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
